"""Toy agents that tell what they have seen, and an environment that counts.

z = (transitions in the belief, random ones, ones of the sampled policy at z = 0, scored ones). The
policy writes a marker and z into its action, so rows tell which z they were run with.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import registry
from gentle_jax.types import (
    AgentState,
    Algorithm,
    Backbone,
    Env,
    Offline,
    Representation,
    Step,
    Transition,
)

SAMPLED, SCORED, STORED = 2.0, 3.0, 4.0  # markers; uniform random actions lie in [-1, 1]
STATE = AgentState(None, None, None)


def count(state, belief, rows, mask):
    """The counting belief: rows by their kind."""
    marker, prior = rows.action[:, 0], (rows.action[:, 1:] == 0).all(-1)
    kinds = [jnp.ones_like(marker), jnp.abs(marker) <= 1, (marker == SAMPLED) & prior]
    kinds.append(marker == SCORED)
    return belief + jnp.stack([(kind * mask).sum() for kind in kinds])


def count_one(state, belief, row):
    """`count` of a single step, as `observe`."""
    return count(state, belief, jax.tree.map(lambda x: x[None], row), jnp.ones(1))


def forget(state, belief, row):
    """An `observe` that learns nothing."""
    return belief


def agent(**fields):
    """An Algorithm that counts. Args: fields, of its Representation."""
    rep = Representation(
        init=None, update=None,
        context=lambda state, data, task_id, key: data_lib.context_rows(data, task_id, 2, key),
        prior=lambda state: jnp.zeros(4),
        extend=count,
        sample=lambda state, belief, key: belief,
        describe=None,
        predict_reward=lambda state, z, rows: rows.reward * z.sum(),
    )  # fmt: skip
    mark = lambda marker, z: jnp.concatenate([jnp.full(1, marker), z])
    mode = lambda state, obs, z: mark(SCORED, z)
    rl = Backbone(1, None, None, lambda state, obs, z, key: mark(SAMPLED, z), mode, mode)
    return Algorithm(None, (), rep._replace(**fields), rl)


def sum_in_order(state, belief, rows, mask):
    """A belief (last tag, rows seen, 1 if in time order): tags are observations' numbers."""

    def one(belief, inputs):
        (last, seen, ordered), (tag, real) = belief, inputs
        follows = (seen == 0) | (tag == last + 1) | (tag % 100 == 0)  # an episode begins at 100 k
        new = jnp.stack([tag, seen + 1, ordered * follows])
        return jnp.where(real > 0, new, belief), None

    return jax.lax.scan(one, belief, (rows.obs[:, 0], mask))[0]


def ordered_agent(**fields):
    """An Algorithm whose z is (last tag, rows seen, whether all were in time order, 0)."""
    return agent(
        prior=lambda state: jnp.array([0.0, 0.0, 1.0]),
        extend=sum_in_order,
        sample=lambda state, belief, key: jnp.append(belief, 0.0),
        ordered_context=True,
        **fields,
    )


def env(horizon, fall_at=0, reward_of=None):
    """Counts its steps; falls after `fall_at` ones where asked. The reward is the step number.

    Args: reward_of, an element of the action: the reward then. A task is a scalar, the first
    observation of an episode is 0.
    """

    def step(task, state, action):
        state = state + 1.0
        over = jnp.where(state >= fall_at, 1.0, 0.0) if fall_at else jnp.zeros(())
        reward = state if reward_of is None else action[reward_of]
        return state, Step(state[None], reward, reward, over)

    return Env(
        name="toy", suite="ctmrl", obs_dim=1, action_dim=5, horizon=horizon,
        ends_early=bool(fall_at), tasks=np.zeros(1), train_ids=np.arange(1), test_ids=np.arange(0),
        reset=lambda task, key: (jnp.zeros(()), jnp.zeros(1)), step=step,
        parameters=np.zeros((1, 1)), parameter_names=("x",),
    )  # fmt: skip


def stored(lengths=(20, 20), tasks=1):
    """A Dataset of marked rows. Observations are 100 k + step, k the episode's number."""
    tags = np.concatenate([100 * k + np.arange(n) for k, n in enumerate(lengths)])
    tags = np.tile(tags.astype(np.float32), (tasks, 1))
    action = np.zeros((*tags.shape, 5), np.float32)
    action[..., 0] = STORED
    leaves = Transition(tags[..., None], action, tags, tags, tags[..., None], 0 * tags)
    start = np.tile(np.cumsum([0, *lengths]).astype(np.int32), (tasks, 1))
    return jax.tree.map(jnp.asarray, data_lib.Dataset(leaves, start, len(lengths), 1))


# --- running a protocol

NO_DATA = stored((1,))


def make(name, env, **settings):
    """Returns the Protocol with these settings of an EvalConfig."""
    return registry.load("protocol", name).make(config_lib.EvalConfig(**settings), env)


def outcome_of(protocol, algorithm, env, offline=NO_DATA, key=0):
    """Returns the Outcome of a protocol."""
    run = lambda offline, key: protocol.run(
        algorithm, STATE, env, jnp.zeros(()), Offline(offline, offline), key
    )
    outcome = jax.jit(run)(offline, jax.random.key(key))
    assert outcome.returns.shape == (protocol.num_episodes,)
    return outcome


def run(name, env, offline=NO_DATA, algorithm=None, **settings):
    """Returns (z of every scored episode [E, 4], Outcome) where no episode ends early."""
    outcome = outcome_of(make(name, env, **settings), algorithm or agent(), env, offline)
    action = np.asarray(outcome.rows.action)
    alive = np.asarray(outcome.mask) > 0
    assert (action[..., 0][alive] == SCORED).all()  # scored episodes are deterministic
    for episode in range(len(action)):  # and z is fixed within one
        np.testing.assert_array_equal(action[episode], action[episode, :1].repeat(env.horizon, 0))
    return action[:, 0, 1:], outcome


def counts(name, horizon, fall_at, offline=NO_DATA, **settings):
    """Returns z of every scored episode [E, 4] where episodes fall after `fall_at` steps.

    Rows of all but the last episode are not kept: the reward is a part of z, one at a time.
    """
    parts = []
    for part in range(4):
        falls = env(horizon, fall_at, reward_of=1 + part)
        outcome = outcome_of(make(name, falls, **settings), agent(), falls, offline)
        returns = np.asarray(outcome.returns)
        episodes = np.append(returns[:-1][~np.isnan(returns[:-1])], returns[-1])
        parts.append(episodes / fall_at)
        np.testing.assert_array_equal(outcome.mask.sum(1), [fall_at])  # the last one's only
        assert outcome.rows.obs.shape == (1, horizon, 1)
    return np.stack(parts, -1)
