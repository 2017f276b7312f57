"""Protocols against a fake agent whose z says what was in the context.

z = (transitions seen, random ones, ones of the sampled policy at z = 0, scored ones). The fake
policy writes a marker and z into its action, so scored rows tell which z they were run with.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import registry
from gentle_jax.types import AgentState, Algorithm, Backbone, Env, Representation, Step, Transition

SAMPLED, SCORED, STORED = 2.0, 3.0, 4.0  # markers; uniform random actions lie in [-1, 1]


def fake_agent():
    """An Algorithm whose belief counts rows by their kind."""

    def extend(state, belief, rows, mask):
        marker, prior = rows.action[:, 0], (rows.action[:, 1:] == 0).all(-1)
        kinds = [jnp.ones_like(marker), jnp.abs(marker) <= 1, (marker == SAMPLED) & prior]
        kinds.append(marker == SCORED)
        return belief + jnp.stack([(kind * mask).sum() for kind in kinds])

    rep = Representation(
        init=None, context=None, update=None,
        prior=lambda state: jnp.zeros(4),
        extend=extend,
        sample=lambda belief, key: belief,
        describe=None,
    )  # fmt: skip
    mark = lambda marker, z: jnp.concatenate([jnp.full(1, marker), z])
    mode = lambda state, obs, z: mark(SCORED, z)
    rl = Backbone(1, None, None, lambda state, obs, z, key: mark(SAMPLED, z), mode, mode)
    return Algorithm(None, (), rep, rl)


def fake_env(horizon, fall_at=0):
    """Counts its steps; falls after `fall_at` ones where asked. The reward is the step number."""

    def step(task, state, action):
        state = state + 1.0
        over = jnp.where(state >= fall_at, 1.0, 0.0) if fall_at else jnp.zeros(())
        return state, Step(state[None], state, state, over)

    return Env(
        name="fake", suite="ctmrl", obs_dim=1, action_dim=5, horizon=horizon,
        ends_early=bool(fall_at), tasks=np.zeros(1), train_ids=np.arange(1), test_ids=np.arange(0),
        reset=lambda task, key: (jnp.zeros(()), jnp.zeros(1)), step=step,
        parameters=np.zeros((1, 1)), parameter_names=("x",),
    )  # fmt: skip


def run(name, env, offline=None, **settings):
    """Returns (z of every scored episode [E, 4], Outcome)."""
    protocol = registry.load("protocol", name).make(config_lib.EvalConfig(**settings), env)
    agent, state = fake_agent(), AgentState(None, None, None)
    function = jax.jit(lambda key: protocol.run(agent, state, env, jnp.zeros(()), offline, key))
    outcome = function(jax.random.key(0))
    action = np.asarray(outcome.rows.action)
    alive = np.asarray(outcome.mask) > 0
    assert outcome.returns.shape == (protocol.num_episodes,)
    assert (action[..., 0][alive] == SCORED).all()  # scored episodes are deterministic
    for episode in range(len(action)):  # and z is fixed within one
        np.testing.assert_array_equal(action[episode], action[episode, :1].repeat(env.horizon, 0))
    return action[:, 0, 1:], outcome


# --- random_then_policy: the table of docs/methods/protocols.md, "random_then_policy"


def test_two_phase_on_point_robot_sizes():
    # B 400, H 20, X 1: 20 pairs; explorations 1..10 are fully random (n + j < 200); the last scored
    # episode's z comes from explorations 1..19, 10 random and 9 of the policy, not from the 20th
    z, _ = run("random_then_policy", fake_env(20), online_steps=400, context_episodes=1)
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
    z, _ = run("random_then_policy", fake_env(200), online_steps=600, context_episodes=2)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 300, 100, 0]])


def test_two_phase_on_ant_sizes():
    # B 800, H 200, X 2: 4 pairs; explorations 1, 2 random; the last z: 400 random + 200 policy,
    # whose steps ran at the z of explorations 1, 2 (inferred after pair 2)
    z, _ = run("random_then_policy", fake_env(200), online_steps=800, context_episodes=2)
    np.testing.assert_array_equal(
        z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 400, 0, 0], [600, 400, 0, 0]]
    )


def test_two_phase_switches_within_an_episode():
    # B 6, H 4: half is 3, so steps 0..2 of the first exploration are random and step 3 is not
    z, _ = run("random_then_policy", fake_env(4), online_steps=6, context_episodes=1)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [4, 3, 1, 0]])


def test_two_phase_context_leaves_out_what_follows_a_fall():
    # every episode falls after 3 of 10 steps: an exploration adds 3 rows, not 10
    z, outcome = run(
        "random_then_policy", fake_env(10, fall_at=3), online_steps=30, context_episodes=1
    )
    np.testing.assert_array_equal(z[:, 0], [0, 3, 6])
    np.testing.assert_array_equal(outcome.mask.sum(1), [3, 3, 3])
    np.testing.assert_array_equal(outcome.returns, [6, 6, 6])  # 1 + 2 + 3


# --- online


@pytest.mark.parametrize("first", [1, 2, 4])
def test_online_runs_its_first_episodes_at_the_prior(first):
    # the first X episodes at z = 0; each scored episode enters the context, nothing else does
    z, _ = run("online", fake_env(5), online_steps=30, context_episodes=first)
    rows = np.array([0 if e < first else 5 * e for e in range(6)])
    np.testing.assert_array_equal(z, np.stack([rows, 0 * rows, 0 * rows, rows], -1))


# --- given_context


def stored(rows=40, tasks=1):
    """Offline rows of the task, marked, and tagged by their index in the reward."""
    action = np.zeros((tasks, rows, 5), np.float32)
    action[..., 0] = STORED
    index = np.tile(np.arange(rows, dtype=np.float32), (tasks, 1))
    leaves = Transition(index[..., None], action, index, index, index[..., None], 0 * index)
    start = np.tile(np.array([0, rows // 2, rows], np.int32), (tasks, 1))
    return jax.tree.map(jnp.asarray, data_lib.Dataset(leaves, start, 2, 1))


def test_given_context_grows_by_one_horizon_per_episode():
    # B / H episodes; H rows of the task's own data before each: H, 2H, 3H
    z, _ = run("given_context", fake_env(5), stored(), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 0, 0], [10, 0, 0, 0], [15, 0, 0, 0]])


def test_given_context_begins_an_episode_for_a_part_of_a_horizon():
    # "until >= B steps were taken": 12 steps at H = 5 need a third episode
    z, _ = run("given_context", fake_env(5), stored(), scored_steps=12)
    assert len(z) == 3


def test_given_context_of_gentle_point_robot_has_thirty_episodes():
    run_config = config_lib.RunConfig(algorithm="gentle", suite="gentle", env="point_robot")
    config = config_lib.resolve(run_config)
    made = registry.load("protocol", "given_context").make(config.eval, fake_env(20))
    assert made.num_episodes == 30  # 600 / 20, docs/methods/protocols.md, "given_context"
    assert next(iter(made.metrics)) == "all"


# --- one_shot


def test_one_shot_context_is_one_sampled_exploration_at_the_prior():
    # every context row was sampled at z = 0; H rows are drawn again before each scored episode; the
    # exploration is not scored and scored episodes never enter the context
    z, outcome = run("one_shot", fake_env(5), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 5, 0], [10, 0, 10, 0], [15, 0, 15, 0]])
    np.testing.assert_array_equal(outcome.returns, [15, 15, 15])


def test_one_shot_collects_exactly_its_exploration_steps():
    # 12 steps: two episodes of 5 and 2 rows of a third; context_resample=False encodes all of them
    z, _ = run(
        "one_shot", fake_env(5), scored_steps=5, exploration_steps=12, context_resample=False
    )
    np.testing.assert_array_equal(z, [[12, 0, 12, 0]])


def test_one_shot_fills_its_quota_with_new_episodes_after_falls():
    z, outcome = run("one_shot", fake_env(6, fall_at=4), scored_steps=6)
    np.testing.assert_array_equal(z, [[6, 0, 6, 0]])
    np.testing.assert_array_equal(outcome.returns, [1 + 2 + 3 + 4])


# --- metrics, and what a real agent's context does


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
@pytest.mark.parametrize("metric", config_lib.METRICS)
def test_metrics_list_the_native_one_first(name, metric):
    made = registry.load("protocol", name).make(config_lib.EvalConfig(metric=metric), fake_env(5))
    assert next(iter(made.metrics)) == metric
    assert set(made.metrics) == {"final", "all", "first"}
    returns = np.array([[1.0, 2.0, 6.0]])
    values = {key: float(function(returns)[0]) for key, function in made.metrics.items()}
    assert values == {"final": 6.0, "all": 3.0, "first": 1.0}
