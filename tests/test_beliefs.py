"""Protocols with beliefs that move within an episode, and with contexts in time order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import evaluation, registry
from gentle_jax.types import Offline

# --- a belief that moves within an episode


def moving(name, env, observe=toys.count_one, offline=toys.NO_DATA, **settings):
    """Returns z [E, H, 4] of every step of the scored episodes of an observing agent."""
    agent = toys.agent(observe=observe)
    outcome = toys.outcome_of(toys.make(name, env, **settings), agent, env, offline)
    action = np.asarray(outcome.rows.action)
    assert (action[..., 0] == toys.SCORED).all()
    return action[..., 1:]


def steps_on(begin, horizon=5):
    """What z [H] says of the number of rows within episodes that begin at these ones."""
    return np.asarray(begin)[:, None] + np.arange(horizon)


def test_given_context_moves_within_an_episode_and_forgets_it():
    z = moving("given_context", toys.env(5), offline=toys.stored(), scored_steps=15)
    np.testing.assert_array_equal(z[..., 0], steps_on([5, 10, 15]))
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))  # only its own steps


def test_one_shot_counts_its_exploration_once():
    # 12 steps, two episodes and a part: the belief goes on over them. Nothing is drawn again
    z = moving("one_shot", toys.env(5), scored_steps=15, exploration_steps=12)
    np.testing.assert_array_equal(z[..., 0], steps_on([12, 12, 12]))
    np.testing.assert_array_equal(z[..., 2], 1)  # the first step alone was at z = 0
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))


def test_online_goes_on_and_counts_no_episode_twice():
    z = moving("online", toys.env(5), online_steps=20, context_episodes=3)
    np.testing.assert_array_equal(z[..., 0], steps_on([0, 5, 10, 15]))
    np.testing.assert_array_equal(z[..., 3], z[..., 0])


def test_two_phase_scores_from_what_z_would_be_inferred_from():
    # B 15, X 2: z is the prior for two pairs; the third begins at explorations 1 and 2
    z = moving("random_then_policy", toys.env(5), online_steps=15, context_episodes=2)
    np.testing.assert_array_equal(z[..., 0], steps_on([0, 0, 10]))
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))
    # random while n + j < 7.5: all of exploration 1, steps 0..2 of exploration 2
    np.testing.assert_array_equal(z[2, 0, 1], 8)


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_an_observer_where_episodes_fall_counts_each_row_once(name):
    env = toys.env(5, fall_at=3)
    agent = toys.agent(observe=toys.count_one)
    settings = {"online_steps": 12, "context_episodes": 0, "scored_steps": 12}
    last = toys.outcome_of(toys.make(name, env, **settings), agent, env, toys.stored()).rows.action[
        0
    ]
    begin = {  # of the fourth and last episode
        "random_then_policy": 3 * 6,  # explorations of two falls each, 6 rows
        "online": 3 * 3,
        "given_context": 4 * 5,
        "one_shot": 5,
        "in_distribution": 2,  # rows of a training task's context: no later return was better
        "noisy_preferences": 2,
    }[name]
    np.testing.assert_array_equal(last[:3, 1], begin + np.arange(3))


@pytest.mark.parametrize("name", ["given_context", "one_shot", "online"])
@pytest.mark.parametrize("fall_at", [0, 3])
def test_an_observer_that_learns_nothing_acts_as_one_that_does_not_observe(name, fall_at):
    # the same keys, bit by bit: z of an episode is drawn with one key, observed or not
    env = toys.env(5, fall_at)
    draw = lambda state, belief, key: belief + jax.random.normal(key, (4,))
    nothing = {"extend": lambda state, belief, rows, mask: belief, "sample": draw}
    protocol = toys.make(name, env, online_steps=15, scored_steps=15)
    plain = toys.outcome_of(protocol, toys.agent(**nothing), env, toys.stored())
    observer = toys.agent(observe=toys.forget, **nothing)
    observed = toys.outcome_of(protocol, observer, env, toys.stored())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(observed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_belief_stands_still_after_the_end_of_an_episode():
    env = toys.env(6, fall_at=4)
    count = lambda belief, row: belief + 1.0
    policy = lambda obs, key, step, belief: jnp.full(5, belief)
    rows, mask, belief = evaluation.play(
        env, jnp.zeros(()), policy, jax.random.key(0), jnp.zeros(()), count
    )
    np.testing.assert_array_equal(rows.action[:, 0], [0, 1, 2, 3, 4, 4])
    assert float(belief) == 4 == float(mask.sum())


# --- whole episodes as contexts


def test_an_ordered_context_is_a_whole_episode_in_time_order():
    env = toys.env(5)
    z, _ = toys.run(
        "given_context", env, toys.stored((5, 5, 5)), toys.ordered_agent(), scored_steps=15
    )
    np.testing.assert_array_equal(z[:, 1], [5, 10, 15])
    np.testing.assert_array_equal(z[:, 2], 1)
    assert (z[:, 0] % 100 == 4).all()  # the last row of an episode


def test_short_episodes_follow_each_other_until_there_is_one_horizon():
    lengths = (3, 0, 4, 1)
    draw = jax.jit(lambda key: data_lib.whole_episodes(toys.stored(lengths), 5, key))
    starts = set()
    for seed in range(30):
        rows, mask = draw(jax.random.key(seed))
        tags = np.asarray(rows.obs)[:, 0]
        size = int(mask.sum())
        assert mask.shape == (9,) and 5 <= size <= 8 and (mask[:size] == 1).all()
        begins = np.flatnonzero(tags[:size] % 100 == 0)
        pieces = np.split(tags[:size], begins[1:])
        for piece in pieces:
            episode = int(piece[0] // 100)
            np.testing.assert_array_equal(piece, 100 * episode + np.arange(lengths[episode]))
            starts.add(episode)
        assert size - len(pieces[-1]) < 5  # no more than needed
    assert starts == {0, 2, 3}


@pytest.mark.parametrize("again", [True, False])
def test_an_ordered_one_shot_context_is_the_exploration_once_as_it_came(again):
    env = toys.env(5)  # observations are the steps: 0..4, 0, 1
    settings = {"scored_steps": 15, "exploration_steps": 7, "context_resample": again}
    z, _ = toys.run("one_shot", env, algorithm=toys.ordered_agent(), **settings)
    np.testing.assert_array_equal(z[:, 1], [7, 7, 7])
    np.testing.assert_array_equal(z[:, [0, 2]], [[1, 1]] * 3)


# in_distribution's only episode is at a training task's z, that of noisy_preferences at a winner's
@pytest.mark.parametrize("observe", [None, toys.forget])
@pytest.mark.parametrize("name", ["in_distribution", "noisy_preferences"])
def test_ordered_contexts_of_training_tasks_are_whole_episodes(name, observe):
    env = toys.env(5)
    agent = toys.ordered_agent(observe=observe, context=None)  # that of training is not drawn
    sizes = {"online_steps": 5, "num_pairs": 2, "fragment_steps": 5, "num_candidates": 1}
    z, _ = toys.run(name, env, toys.stored((5, 5, 5)), agent, **sizes)
    assert z[0, 0] % 100 == 4  # the last row of an episode
    np.testing.assert_array_equal(z[0, 1:3], [5, 1])
    protocol, seen = toys.make(name, env, **sizes), set()
    run = jax.jit(
        lambda key: protocol.run(
            agent, toys.STATE, env, jnp.zeros(()), Offline(None, toys.stored((3, 0, 4, 1))), key
        )
    )
    for seed in range(20):  # short ones follow each other until there is one horizon
        last, rows, ordered = np.asarray(run(jax.random.key(seed)).rows.action)[0, 0, 1:4]
        assert ordered == 1 and 5 <= rows <= 8 and last in (2, 203, 300)
        seen.add(last)
    assert len(seen) == 3


def test_ordered_contexts_of_figures_are_whole_episodes():
    agent = toys.ordered_agent(describe=lambda state, z: {"rows": z[1]})
    train = config_lib.TrainConfig(context_draw="uniform", context_size=7)
    embed = evaluation.make_embed(agent, train, 3, 5)
    state = toys.STATE
    run = jax.jit(lambda key: embed(state, key, toys.stored((5, 5, 5), tasks=2), jnp.int32(0)))
    shown = jax.tree.map(np.asarray, run(jax.random.key(0)))
    assert shown["z"].shape == (2, 3, 4)
    assert (shown["z"][..., 0] % 100 == 4).all() and len(np.unique(shown["z"][..., 0])) > 1
    np.testing.assert_array_equal(shown["z"][..., 2], 1)
    np.testing.assert_array_equal(shown["rows"], 5)
