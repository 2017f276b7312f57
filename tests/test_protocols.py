"""Budgets and contexts of protocols, against toy agents whose z says what was seen (`toys`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import evaluation, registry, sweep
from gentle_jax.protocols import base
from gentle_jax.types import Cost, Offline, Outcome

# --- random_then_policy: the table of docs/methods/protocols.md, "random_then_policy"


def test_two_phase_on_point_robot_sizes():
    # B 400, H 20, X 1: 20 pairs; explorations 1..10 are fully random (n + j < 200); the last scored
    # episode's z comes from explorations 1..19, 10 random and 9 of the policy, not from the 20th
    z, _ = toys.run("random_then_policy", toys.env(20), online_steps=400, context_episodes=1)
    assert len(z) == 20
    for pair in range(20):
        seen = pair  # explorations before this pair, for its own is not in z yet
        np.testing.assert_array_equal(z[pair, :2], [20 * seen, 20 * min(seen, 10)])
    np.testing.assert_array_equal(z[-1, :2], [19 * 20, 10 * 20])
    # from the second pair on z is not the prior, so no policy step was taken at z = 0
    np.testing.assert_array_equal(z[:, 2:], 0)


def test_two_phase_on_cheetah_sizes():
    # B 600, H 200, X 2: 3 pairs; exploration 1 and half of 2 are random; scored episodes 1 and 2
    # use z = 0; the third uses explorations 1, 2: 300 random and 100 policy steps at z = 0
    z, _ = toys.run("random_then_policy", toys.env(200), online_steps=600, context_episodes=2)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 300, 100, 0]])


def test_two_phase_on_ant_sizes():
    # B 800, H 200, X 2: 4 pairs; explorations 1, 2 random; the last z: 400 random + 200 policy,
    # whose steps ran at the z of explorations 1, 2 (inferred after pair 2)
    z, _ = toys.run("random_then_policy", toys.env(200), online_steps=800, context_episodes=2)
    np.testing.assert_array_equal(
        z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 400, 0, 0], [600, 400, 0, 0]]
    )


def test_two_phase_switches_within_an_episode():
    # B 6, H 4: half is 3, so steps 0..2 of the first exploration are random and step 3 is not
    z, _ = toys.run("random_then_policy", toys.env(4), online_steps=6, context_episodes=1)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [4, 3, 1, 0]])


def test_two_phase_where_every_episode_falls():
    # H 200, B 600, X 2, falls after 60: an exploration is 4 episodes of 60, the policy's share of
    # step j begins at n + j = 300. Ten pairs. z is not inferred before n >= 400, after 7 of them.
    z = toys.counts("random_then_policy", 200, 60, online_steps=600, context_episodes=2)
    assert len(z) == 10
    np.testing.assert_array_equal(z[:7], 0)
    # explorations of pairs 1..5 are random (n = 0 ... 240, j < 60), those of 6 and 7 the policy's
    # at z = 0, from pair 8 on at another z
    policy = z[:, 0] - z[:, 1]
    np.testing.assert_array_equal(z[7:, 1], 1200)
    np.testing.assert_array_equal(policy[7:], [480, 720, 960])
    np.testing.assert_array_equal(z[7:, 2], 480)
    np.testing.assert_array_equal(z[:, 3], 0)  # scored episodes never enter


def test_two_phase_switches_by_the_step_within_an_episode():
    # H 10, falls after 6, B 20: explorations of 12 rows in 2 episodes; half is 10. Pair 1: n = 0,
    # all random; pair 2: n = 6, steps 0..3 of both episodes are random; pair 3: n = 12, none
    z = toys.counts("random_then_policy", 10, 6, online_steps=20, context_episodes=0)
    np.testing.assert_array_equal(z[:, 0], [0, 12, 24, 36])
    np.testing.assert_array_equal(z[:, 1], [0, 12, 20, 20])


def test_episodes_that_end_at_the_horizon_by_falling_are_like_those_that_do_not():
    settings = {"online_steps": 6, "context_episodes": 1}
    z = toys.counts("random_then_policy", 4, 4, **settings)
    np.testing.assert_array_equal(z, toys.run("random_then_policy", toys.env(4), **settings)[0])


# --- online


@pytest.mark.parametrize("first", [1, 2, 4])
def test_online_runs_its_first_episodes_at_the_prior(first):
    # the first X episodes at z = 0; each scored episode enters the context, nothing else does
    z, _ = toys.run("online", toys.env(5), online_steps=30, context_episodes=first)
    rows = np.array([0 if e < first else 5 * e for e in range(6)])
    np.testing.assert_array_equal(z, np.stack([rows, 0 * rows, 0 * rows, rows], -1))


# --- given_context


def test_given_context_grows_by_one_horizon_per_episode():
    # B / H episodes; H rows of the task's own data before each: H, 2H, 3H
    z, _ = toys.run("given_context", toys.env(5), toys.stored(), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 0, 0], [10, 0, 0, 0], [15, 0, 0, 0]])


def test_given_context_begins_an_episode_for_a_part_of_a_horizon():
    # "until >= B steps were taken": 12 steps at H = 5 need a third episode
    z, _ = toys.run("given_context", toys.env(5), toys.stored(), scored_steps=12)
    assert len(z) == 3


def test_given_context_of_gentle_point_robot_has_thirty_episodes():
    run_config = config_lib.RunConfig(algorithm="gentle", suite="gentle", env="point_robot")
    config = config_lib.resolve(run_config)
    made = registry.load("protocol", "given_context").make(config.eval, toys.env(20))
    assert made.num_episodes == 30  # 600 / 20, docs/methods/protocols.md, "given_context"
    assert next(iter(made.metrics)) == "all"


# --- one_shot


def test_one_shot_context_is_one_sampled_exploration_at_the_prior():
    # every context row was sampled at z = 0; H rows are drawn again before each scored episode; the
    # exploration is not scored and scored episodes never enter the context
    z, outcome = toys.run("one_shot", toys.env(5), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 5, 0], [10, 0, 10, 0], [15, 0, 15, 0]])
    np.testing.assert_array_equal(outcome.returns, [15, 15, 15])


def test_one_shot_collects_exactly_its_exploration_steps():
    # 12 steps: two episodes of 5 and 2 rows of a third; context_resample=False encodes all of them
    z, _ = toys.run(
        "one_shot", toys.env(5), scored_steps=5, exploration_steps=12, context_resample=False
    )
    np.testing.assert_array_equal(z, [[12, 0, 12, 0]])


def test_one_shot_fills_its_quota_with_new_episodes_after_falls():
    # 6 rows, episodes fall after 4: scored ones are 2, for 4 steps are less than 6
    z = toys.counts("one_shot", 6, 4, scored_steps=6)
    np.testing.assert_array_equal(z, [[6, 0, 6, 0], [12, 0, 12, 0]])


# --- episodes that end early: until B steps were scored


def test_given_context_goes_on_until_the_budget_is_spent():
    # H 5, falls after 2, B 7: four episodes, 5 rows more before each
    z = toys.counts("given_context", 5, 2, offline=toys.stored(), scored_steps=7)
    np.testing.assert_array_equal(z[:, 0], [5, 10, 15, 20])


def test_online_counts_real_steps():
    # H 5, falls after 2, B 12, X 1: z is inferred once n >= 5, after the third episode
    z = toys.counts("online", 5, 2, online_steps=12, context_episodes=1)
    np.testing.assert_array_equal(z[:, 0], [0, 0, 0, 6, 8, 10])


def test_slots_without_an_episode_are_nan_and_the_last_slot_is_the_last_episode():
    env = toys.env(5, fall_at=2)
    protocol = toys.make("online", env, online_steps=5, context_episodes=1)
    assert protocol.num_episodes == 5  # episodes of one step each would be 5
    returns = toys.outcome_of(protocol, toys.agent(), env).returns
    np.testing.assert_array_equal(returns, [3, 3, np.nan, np.nan, 3])  # 1 + 2 each
    values = {name: float(pick(returns)) for name, pick in protocol.metrics.items()}
    assert values == {"final": 3.0, "all": 3.0, "first": 3.0}


def test_a_single_episode_is_the_first_and_the_last():
    env = toys.env(5, fall_at=3)
    returns = toys.outcome_of(toys.make("online", env, online_steps=3), toys.agent(), env).returns
    np.testing.assert_array_equal(returns, [6, np.nan, 6])


def test_a_return_that_is_not_finite_ends_the_loop_and_stays():
    env = toys.env(5, fall_at=1)
    nan = lambda state, obs, z: jnp.full(5, jnp.nan)
    agent = toys.agent()
    agent = agent._replace(rl=agent.rl._replace(mode=nan))
    broken = toys.env(5, fall_at=1, reward_of=0)
    protocol = toys.make("given_context", broken, scored_steps=50)
    outcome = toys.outcome_of(protocol, agent, broken, toys.stored())
    assert np.isnan(outcome.returns).all() and outcome.mask.sum() == 1
    assert all(np.isnan(pick(outcome.returns)) for pick in protocol.metrics.values())
    healthy = toys.outcome_of(toys.make("given_context", env, scored_steps=50), toys.agent(), env)
    assert np.isfinite(healthy.returns).all()  # fifty episodes of one step


def test_means_leave_out_empty_slots_but_not_runs_that_diverged():
    nan, mean = np.nan, base.METRICS["all"]
    rows = np.array([[1, 2, nan, nan, 6], [1, 2, 3, 4, 5], [nan] * 5, [1, nan, nan, nan, nan]])
    np.testing.assert_array_equal(mean(rows), [3, 3, nan, nan])
    plain = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_array_equal(mean(plain), plain.mean(-1))
    assert mean(plain).dtype == np.float32


def test_repeats_of_unlike_lengths_are_averaged_by_number_and_by_the_last():
    nan = jnp.nan
    returns = jnp.array([[1, 2, nan, nan, 4], [3, 6, 9, nan, 8]])
    np.testing.assert_array_equal(evaluation.mean_over_repeats(returns), [2, 4, 9, nan, 6])
    diverged = returns.at[1].set(nan)
    np.testing.assert_array_equal(evaluation.mean_over_repeats(diverged), [nan, 2, nan, nan, nan])


def falls_by_task(horizon):
    """An Env whose tasks are how many steps their episodes last. Reward: the rows behind z."""

    def step(task, state, action):
        state = state + 1.0
        over = (state >= task).astype(jnp.float32)
        return state, toys.Step(state[None], action[1], action[1], over)

    tasks = np.array([1.0, 4.0])
    return toys.env(horizon, horizon)._replace(step=step, train_ids=np.arange(2), tasks=tasks)


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_tasks_side_by_side_do_not_disturb_each_other(name):
    env, agent, data = falls_by_task(4), toys.agent(), toys.stored(tasks=2)
    protocols = {name: toys.make(name, env, scored_steps=8, online_steps=8)}
    args = toys.STATE, jax.random.key(0), jnp.array(env.tasks), data, jnp.int32(0)
    together, alone = (
        jax.jit(evaluation.make_evaluate(agent, env, protocols, 2, at_once))(*args)[name]
        for at_once in (2, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, together, alone)
    scored = [8, 2] if protocols[name].num_episodes > 1 else [1, 1]
    path, mask = together.shown  # one episode of each task
    assert path.shape[:2] == (2, env.horizon + 1) and mask.sum(1).tolist() == [1, 4]
    scores = together._replace(shown=None)
    for leaf in jax.tree.leaves(scores):  # returns and each cost: whichever slots were used
        assert np.isfinite(leaf).sum(1).tolist() == scored


def test_two_devices_that_exchange_rows_go_round_equally_often():
    # data split by task over two devices, tasks that fall after 1 and 4 steps: 8 and 2 episodes
    env = falls_by_task(4)
    protocol = toys.make("given_context", env, scored_steps=8)
    mesh = sweep.make_mesh(2)
    tasks = jnp.array(env.tasks)

    def one(task, key, data):
        index = (task > 1).astype(jnp.int32)
        offline = evaluation.stored_data(data, index, 2)
        return protocol.run(toys.agent(), toys.STATE, env, task, offline, key).returns

    keys = jax.random.split(jax.random.key(0), 2)
    data = sweep.place_data(data_lib.split_tasks(toys.stored(tasks=2), 2), mesh)
    split = jax.jit(sweep.over_runs(one, 2, mesh))
    found = split(sweep.place(tasks, mesh), sweep.place(keys, mesh), data)
    whole = jax.jit(lambda *args: jax.lax.map(lambda x: one(*x, toys.stored(tasks=2)), args))
    np.testing.assert_array_equal(found, whole(tasks, keys))
    assert np.isfinite(found).sum(1).tolist() == [8, 2]


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_environments_that_never_end_early_pay_nothing_for_restarts(name):
    # one scan of B / H rounds; no row of a second episode, no loop whose length is not known
    env, sizes = toys.env(7), {"online_steps": 21, "scored_steps": 21}
    run = toys.make(name, env, **sizes).run
    offline = Offline(toys.stored(), toys.stored())
    text = str(
        jax.make_jaxpr(
            lambda key: run(toys.agent(), toys.STATE, env, jnp.zeros(()), offline, key).returns
        )(jax.random.key(0))
    )
    assert "while" not in text and "[13" not in text  # 2 H - 1
    falls = toys.env(7, fall_at=2)
    run = toys.make(name, falls, **sizes).run
    assert "while" in str(
        jax.make_jaxpr(
            lambda key: run(toys.agent(), toys.STATE, falls, jnp.zeros(()), offline, key).returns
        )(jax.random.key(0))
    )


# --- what was spent before each scored episode


def costs(name, horizon, fall_at=0, offline=toys.NO_DATA, **settings):
    """Returns (steps, episodes, queries) before each scored episode, without empty slots."""
    env = toys.env(horizon, fall_at)
    cost = toys.outcome_of(toys.make(name, env, **settings), toys.agent(), env, offline).cost
    cut = lambda x: np.append(x[:-1][~np.isnan(x[:-1])], x[-1])
    return [cut(np.asarray(leaf)) for leaf in cost]


def test_cost_of_full_length_episodes():
    # a pair: an exploration of 20 steps, then a scored episode, which costs those after it
    steps, episodes, queries = costs("random_then_policy", 20, online_steps=60)
    np.testing.assert_array_equal(steps, [20, 60, 100])
    np.testing.assert_array_equal(episodes, [1, 3, 5])
    np.testing.assert_array_equal(queries, 0)
    for name, data in (("online", toys.NO_DATA), ("given_context", toys.stored())):
        found = costs(name, 5, offline=data, online_steps=15, scored_steps=15)
        np.testing.assert_array_equal(found, [[0, 5, 10], [0, 1, 2], [0, 0, 0]])
    # 12 steps: two whole episodes and 2 steps of a third
    found = costs("one_shot", 5, exploration_steps=12, scored_steps=10)
    np.testing.assert_array_equal(found, [[12, 17], [3, 4], [0, 0]])
    found = costs("one_shot", 5, scored_steps=10)
    np.testing.assert_array_equal(found, [[5, 10], [1, 2], [0, 0]])


def test_cost_where_every_episode_falls():
    # H 200, falls after 60, B 600: ten pairs; an exploration is 4 episodes of 60
    steps, episodes, queries = costs("random_then_policy", 200, 60, online_steps=600)
    pair = np.arange(10)
    np.testing.assert_array_equal(steps, 240 * (pair + 1) + 60 * pair)
    np.testing.assert_array_equal(episodes, 4 * (pair + 1) + pair)
    np.testing.assert_array_equal(queries, 0 * pair)
    for name, data in (("online", toys.NO_DATA), ("given_context", toys.stored())):
        found = costs(name, 5, 2, data, online_steps=7, scored_steps=7)
        np.testing.assert_array_equal(found, [[0, 2, 4, 6], [0, 1, 2, 3], [0] * 4])
    # 6 rows of episodes that fall after 4: the second is cut
    found = costs("one_shot", 6, 4, scored_steps=6)
    np.testing.assert_array_equal(found, [[6, 10], [2, 3], [0, 0]])
    # 9 rows: 4 + 4 + 1, where the horizon ends episodes as well as falls do
    for fall_at in (4, 5):
        found = costs("one_shot", 4, fall_at, exploration_steps=9, scored_steps=4)
        # one episode is the first and the last
        np.testing.assert_array_equal(found, [[9, 9], [3, 3], [0, 0]])


def test_costs_are_averaged_over_repeats_as_returns_are():
    env, protocol = toys.env(5), {"online": toys.make("online", toys.env(5), online_steps=10)}
    evaluate = evaluation.make_evaluate(toys.agent(), env, protocol, 3)
    args = toys.STATE, jax.random.key(0), jnp.zeros(1), toys.NO_DATA, jnp.int32(0)
    scores = jax.jit(evaluate)(*args)["online"]
    np.testing.assert_array_equal(scores.returns, [[15, 15]])
    np.testing.assert_array_equal(scores.cost.steps, [[0, 5]])
    np.testing.assert_array_equal(scores.cost.episodes, [[0, 1]])
    np.testing.assert_array_equal(scores.cost.queries, [[0, 0]])


def test_a_body_says_what_it_spends_and_until_adds_up():
    def body(carry, inputs):
        taken = inputs[1]
        env, mask = toys.env(4), jnp.ones(4)
        rows = evaluation.empty_rows(env, 4)
        cost = Cost(queries=jnp.where(taken == 4, 3.0, 1.0))
        return carry, Outcome(jnp.zeros(()), rows, mask, cost)

    run = lambda env: jax.jit(lambda key: base.until(env, 12, body, 0, key).cost)
    whole, early = (run(env)(jax.random.key(0)) for env in (toys.env(4), toys.env(4, 4)))
    np.testing.assert_array_equal(whole.queries, [1, 4, 5])
    np.testing.assert_array_equal(whole.steps, [0, 4, 8])
    for a, b in zip(whole, early, strict=True):  # slots of the loop: two, the last, NaN between
        np.testing.assert_array_equal([b[0], b[1], b[-1]], a)


# --- metrics, and what a real agent's context does


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
@pytest.mark.parametrize("metric", config_lib.METRICS)
def test_metrics_list_the_native_one_first(name, metric):
    made = registry.load("protocol", name).make(config_lib.EvalConfig(metric=metric), toys.env(5))
    assert next(iter(made.metrics)) == metric
    assert set(made.metrics) == {"final", "all", "first"}
    returns = np.array([[1.0, 2.0, 6.0]])
    values = {key: float(function(returns)[0]) for key, function in made.metrics.items()}
    assert values == {"final": 6.0, "all": 3.0, "first": 1.0}
