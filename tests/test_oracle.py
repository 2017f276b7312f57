"""A protocol that asks an oracle: training data, the environment's rewards, predicted rewards.

Of the z of all training tasks it takes the one whose predicted rewards fit the test task's own
rewards of stored rows of the training tasks best; no step is spent on it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import small_env

from gentle_jax import data as data_lib
from gentle_jax.protocols import base
from gentle_jax.types import AgentState, Algorithm, Backbone, Offline, Representation, Traits

ROWS = 32


def point_agent(env):
    """An Algorithm whose z is a goal: it heads for it and predicts rewards by it."""
    goals = jnp.asarray(env.tasks["goal"][env.train_ids])
    rep = Representation(
        init=None, context=None, update=None,
        prior=lambda state: jnp.zeros(2),
        extend=lambda state, belief, rows, mask: belief,
        sample=lambda state, belief, key: belief,
        describe=None,
        encode=lambda state, context, task_id, key: goals[task_id],
        predict_reward=lambda state, z, rows: -jnp.linalg.norm(rows.next_obs - z, axis=-1),
        traits=Traits(unbounded_z=True, no_context=True),
    )  # fmt: skip
    mode = lambda state, obs, z: jnp.clip((z - obs) / 0.1, -1.0, 1.0)
    rl = Backbone(1, None, None, lambda state, obs, z, key: mode(state, obs, z), mode, mode)
    return Algorithm(None, (), rep, rl)


def choose_by_oracle(algorithm, state, env, task, offline, key):
    """Returns (z, how badly each candidate predicts): a protocol's run before its episode."""
    k_rows, k_z = jax.random.split(key)
    ids = jnp.arange(len(env.train_ids))
    rows = data_lib.context_rows(offline.train, ids, ROWS, k_rows)
    candidates = algorithm.rep.encode(state.rep, rows, ids, k_z)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    true = env.relabel(task, flat)
    predict = lambda z: algorithm.rep.predict_reward(state.rep, z, flat)
    error = ((jax.vmap(predict)(candidates) - true) ** 2).mean(1)
    return candidates[error.argmin()], error


def test_rewards_of_stored_rows_tell_which_training_task_is_met():
    env, dataset = small_env("ctmrl", "point_robot")
    data = jax.tree.map(jnp.asarray, data_lib.take_tasks(dataset, env.train_ids))
    algorithm, state = point_agent(env), AgentState(None, None, None)
    nothing = Offline(own=None, train=data)  # the tested task's own data are not read
    for index in range(len(env.train_ids)):
        task = jax.tree.map(lambda leaf, i=index: jnp.asarray(leaf[i]), env.tasks)
        z, error = choose_by_oracle(algorithm, state, env, task, nothing, jax.random.key(index))
        np.testing.assert_allclose(z, env.tasks["goal"][index])
        np.testing.assert_allclose(error[index], 0.0, atol=1e-9)
        assert np.delete(np.asarray(error), index).min() > 1e-5
        scored = base.scored_episode(algorithm, state, env, task, z, jax.random.key(0))
        best = env.relabel(task, jax.tree.map(lambda x: x[0], scored.rows))
        assert float(scored.returns) > env.horizon * float(best) - 1e-5  # it comes closer
