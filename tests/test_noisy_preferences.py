"""noisy_preferences: the search by hand and against plain Python, the fragments, the oracle."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import small_env
from test_oracle import point_agent

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors
from gentle_jax.envs import base
from gentle_jax.protocols import noisy_preferences as protocol
from gentle_jax.types import AgentState, Offline


def settings(**fields):
    return config_lib.EvalConfig(**fields)


# --- weights and numbers by hand


def test_weights_of_three_questions_by_hand():
    # after question 1 two are left: 1, 1 + 2, 1 + 2 + 1; after 2 one: 1, 2, 2; after 3: 1, 1, 1
    table = protocol.weights(3)
    np.testing.assert_array_equal(table[:, :3], 0)  # e = -3, -2, -1: no candidate is that bad
    np.testing.assert_array_equal(table[1:, 3:], [[1, 3, 4, 4], [1, 2, 2, 2], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    "questions,noise,errors_at_first,count",
    [
        (10, 0.2, 2, 18),  # 1024 / (1 + 10 + 45)
        (3, 0.0, 0, 8),
        (3, 0.34, 1, 2),  # 8 / (1 + 3)
        (10, 0.3, 3, 5),  # 0.3 * 10 as floats; 1024 / 176
    ],
)
def test_numbers_of_candidates_by_hand(questions, noise, errors_at_first, count):
    config = settings(num_queries=questions, query_noise=noise)
    assert protocol.error_budget(config) == errors_at_first
    assert protocol.num_hypotheses(config) == count


def test_the_pair_that_halves_the_candidates_is_asked_about():
    # K = 2, no errors allowed, question 1: a candidate that agreed weighs 1, another none.
    # Pair 0: all say yes, so "yes" leaves 4; pair 1 splits them 2 to 2; pair 2: 3 to 1
    prefers = jnp.array([[True, True, True], [True, True, True], [True, False, True],
                         [True, False, False]])  # fmt: skip
    table = jnp.asarray(protocol.weights(2))
    left = protocol.worst_left(table[1], 2, jnp.zeros(4, int), jnp.int32(0 - 1), prefers)
    np.testing.assert_array_equal(left, [4, 2, 3])


def test_errors_within_the_budget_still_weigh():
    # K = 3, one error allowed, question 2, scores 1 and 0. After it one question is left.
    # yes: candidate 0 agrees (errors 0, e = 1: 2), candidate 1 agrees (errors 1, e = 0: 1) -> 3
    # no: candidate 0 has one error (e = 0: 1), candidate 1 has two (e = -1: 0) -> 1
    table = jnp.asarray(protocol.weights(3))
    both = jnp.array([[True], [True]])
    left = protocol.worst_left(table[2], 3, jnp.array([1, 0]), jnp.int32(1 - 2), both)
    np.testing.assert_array_equal(left, [3])


# --- the search


def simulate(config, guess, true, key):
    """The pseudocode of docs/methods/anole.md, with the keys as the program splits them."""
    total, candidates = config.num_queries, range(len(guess))
    k_questions, k_tie = jax.random.split(key)
    score, budget, raised = [0] * len(guess), math.floor(config.query_noise * total + 1e-9), False
    for q, k in enumerate(jax.random.split(k_questions, total), 1):
        k_pairs, k_noise = jax.random.split(k)
        first, second = map(np.asarray, protocol._pairs(len(true), config.num_pairs, k_pairs))
        best = None
        for a, b in zip(first, second, strict=True):
            assert a != b
            worst = 0
            for answer in (True, False):
                left = 0
                for i in candidates:
                    agrees = (guess[i][a] >= guess[i][b]) == answer
                    spare = budget - (q - (score[i] + agrees))
                    left += sum(math.comb(total - q, k) for k in range(spare + 1))
                worst = max(worst, left)
            if best is None or worst < best[0]:
                best = (worst, a, b)
        _, a, b = best
        wrong = float(jax.random.uniform(k_noise)) < config.query_noise
        answer = (true[a] >= true[b]) != wrong
        score = [score[i] + ((guess[i][a] >= guess[i][b]) == answer) for i in candidates]
        raised |= q - max(score) > budget
        budget = max(budget, q - max(score))
    tie = np.asarray(jax.random.uniform(k_tie, (len(guess),)))
    return max(candidates, key=lambda i: (score[i], tie[i])), raised


@pytest.mark.parametrize("questions,noise", [(5, 0.0), (6, 0.2), (4, 0.45)])
def test_the_search_is_that_of_the_pseudocode(questions, noise):
    config = settings(num_queries=questions, query_noise=noise, num_pairs=6)
    random = np.random.default_rng(0)
    guess = random.normal(size=(12, 7, 9)).astype(np.float32)
    true = random.normal(size=(12, 9)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 12)
    found = jax.jit(jax.vmap(lambda *a: protocol.search(config, *a)))(guess, true, keys)
    wanted = [simulate(config, *case) for case in zip(guess, true, keys, strict=True)]
    assert np.asarray(found).tolist() == [winner for winner, _ in wanted]
    if noise < 0.4:  # no candidate is right: more errors than were reckoned with
        assert any(raised for _, raised in wanted)


@pytest.mark.parametrize("noise,least", [(0.0, 0.95), (0.2, 0.5)])
def test_the_right_one_of_thirty_is_identified(noise, least):
    config = settings(query_noise=noise)
    guess = jnp.asarray(np.random.default_rng(1).normal(size=(30, 200)), jnp.float32)
    find = jax.jit(jax.vmap(lambda true, key: protocol.search(config, guess, true, key)))
    found = find(guess, jax.random.split(jax.random.key(3), 30))
    assert (np.asarray(found) == np.arange(30)).mean() >= least


# --- fragments


def test_fragments_are_consecutive_rows_of_one_episode():
    data = toys.stored((5, 2, 0, 9), tasks=2)
    draw = jax.jit(lambda key: data_lib.fragments(data, jnp.array([1, 0]), 60, 4, key))
    rows, mask = draw(jax.random.key(0))
    tags = np.asarray(rows.obs)[..., 0]
    assert tags.shape == mask.shape == (2, 60, 4)
    starts = set()
    for tag, real in zip(tags.reshape(-1, 4), np.asarray(mask).reshape(-1, 4), strict=True):
        size, episode = int(real.sum()), int(tag[0] // 100)
        assert size == min(4, (5, 2, 0, 9)[episode]) and (real[:size] == 1).all()
        np.testing.assert_array_equal(tag[:size], tag[0] + np.arange(size))
        assert tag[size - 1] % 100 < (5, 2, 0, 9)[episode]
        starts.add(int(tag[0]))
    assert starts == {0, 1, 100, *range(300, 306)}  # every place where a fragment may begin


def test_stored_fragments_tell_the_tested_task_where_tasks_are_revealed():
    plain, dataset = small_env("ctmrl", "point_robot")
    env = base.reveal(plain)
    shown, ids = env.tasks["revealed"], env.train_ids
    data = data_lib.append(data_lib.take_tasks(dataset, ids), shown[ids])
    task = jax.tree.map(lambda x: jnp.asarray(x[env.test_ids[1]]), env.tasks)
    data = jax.tree.map(jnp.asarray, data)
    rows, mask, true, _ = protocol._stored(env, task, data, 20, 3, 0, jax.random.key(0))
    for obs in (rows.obs, rows.next_obs):
        wanted = np.broadcast_to(shown[env.test_ids[1]], (20, 3, 2))
        np.testing.assert_array_equal(obs[..., 2:], wanted)
    away = np.linalg.norm(np.asarray(rows.next_obs)[..., :2] - np.asarray(task["goal"]), axis=-1)
    np.testing.assert_allclose(true, -away, rtol=1e-5)
    assert np.asarray(mask).all() and np.ptp(true) > 0


@pytest.mark.parametrize("fall_at,length", [(0, 5), (3, 3)])
def test_without_relabelling_fragments_are_random_steps_in_the_task_itself(fall_at, length):
    env = toys.env(5, fall_at)
    rows, mask, true, spent = jax.jit(
        lambda key: protocol._random(env, jnp.zeros(()), None, 40, 2, 13, key)
    )(jax.random.key(0))
    step = np.asarray(rows.next_obs)[..., 0]  # 1, 2, ... within an episode
    two = np.asarray(mask).sum(1) == 2
    np.testing.assert_array_equal(step[two, 1], step[two, 0] + 1)
    assert step.max() <= length and len(set(step[two, 0])) == length - 1
    assert (float(spent.steps), float(spent.queries)) == (13, 0)
    assert float(spent.episodes) == math.ceil(13 / length)
    # 13 steps: the last episode has 3, or 1 that is a fragment of its own
    assert (step[~two, 0] == 1).all() and (~two).any() == (fall_at == 3)
    np.testing.assert_array_equal(true, step)  # the rewards that they had
    assert (np.abs(rows.action) <= 1).all() and np.std(rows.action) > 0.4


# --- with an oracle


def test_questions_about_stored_rows_tell_which_training_task_is_met():
    env, dataset = small_env("ctmrl", "point_robot")
    data = jax.tree.map(jnp.asarray, data_lib.take_tasks(dataset, env.train_ids))
    context = lambda state, data, ids, key: data_lib.context_rows(data, ids, 2, key)
    algorithm = point_agent(env)
    algorithm = algorithm._replace(rep=algorithm.rep._replace(context=context))
    state, config = (
        AgentState(None, None, None),
        settings(query_noise=0.0, num_queries=6, fragment_steps=5),
    )
    run = jax.jit(
        lambda task, key: protocol.make(config, env).run(
            algorithm, state, env, task, Offline(None, data), key
        )
    )
    right = []
    for index in range(len(env.train_ids)):
        task = jax.tree.map(lambda leaf, i=index: jnp.asarray(leaf[i]), env.tasks)
        outcome = run(task, jax.random.key(index))
        assert outcome.returns.shape == (1,) and outcome.mask.shape == (1, env.horizon)
        assert [float(x[0]) for x in outcome.cost] == [0, 0, 6]  # steps, episodes, queries
        goal, end = np.asarray(task["goal"]), np.asarray(outcome.rows.next_obs)[0, -1]
        gaps = np.linalg.norm(env.tasks["goal"][env.train_ids] - end, axis=1)
        right.append(gaps.argmin() == index or np.allclose(end, np.clip(goal, -0.5, 0.5)))
    assert sum(right) >= 3, right


def test_it_needs_predicted_rewards():
    run = config_lib.RunConfig(algorithm="focal", protocols=("noisy_preferences",))
    with pytest.raises(errors.UserError, match="needs 'predict_reward', which algorithm 'focal' l"):
        config_lib.fill_names(run)


@pytest.mark.parametrize(
    "fields,text",
    [
        ({"query_noise": 0.5}, "eval.query_noise is 0.5: expected 0 or more, and less than 0.5"),
        ({"query_noise": -0.1}, "eval.query_noise is -0.1: expected 0 or more, and less than 0.5"),
        ({"num_queries": 40}, "eval.num_queries is 40: so many answers with eval.query_noise 0.2"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused_in_one_line(fields, text):
    with pytest.raises(errors.UserError) as error:
        toys.make("noisy_preferences", toys.env(5), **fields)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)


def test_fragments_are_at_most_one_horizon_and_sized_by_the_environment():
    for suite, env, steps in (("ctmrl", "point_robot_wind", 20), ("ctmrl", "cheetah_vel", 64)):
        run = config_lib.RunConfig(algorithm="anole", suite=suite, env=env)
        config = config_lib.resolve(run)
        horizon = 25 if env == "point_robot_wind" else 200
        for name in ("eval", "algo"):
            wanted = getattr(config, name).fragment_steps
            assert data_lib.fragment_steps(wanted, horizon, name) == steps
    assert [data_lib.fragment_steps(n, 20, "x") for n in (0, 7, 20)] == [20, 7, 20]
    with pytest.raises(errors.UserError) as error:
        toys.make("noisy_preferences", toys.env(5), fragment_steps=6)
    assert str(error.value) == (
        "eval.fragment_steps is 6: expected at most 5, the horizon; pass "
        "--config.eval.fragment_steps=5, or 0 for up to 64"
    )
    long = {"num_pairs": 2, "num_queries": 1, "online_steps": 4}
    z, outcome = toys.run("noisy_preferences", toys.env(5), **long)
    assert len(z) == 1 and float(outcome.returns[0]) == 15
    assert [float(x[0]) for x in outcome.cost] == [5, 1, 1]  # at least one horizon of random steps
