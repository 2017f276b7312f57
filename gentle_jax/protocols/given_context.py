"""The context is given: rows of the task's own offline data.

gentle_suite.md sec. 4; CTMRL "offline". Before every scored episode one horizon of rows is drawn
with replacement and added to the context.
"""

import jax
import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax.protocols import base
from gentle_jax.types import Protocol


def make(config, env):
    """Returns the Protocol. Args: config, an EvalConfig; env, an Env."""
    episodes = base.num_episodes(config.scored_steps, env.horizon)

    def run(algorithm, state, env, task, offline, key):
        def draw(k):
            rows = data_lib.rl_batch(offline.own, jnp.zeros(1, jnp.int32), env.horizon, k)
            return jax.tree.map(lambda x: x[0], rows), jnp.ones(env.horizon)

        return base.growing_context(algorithm, state, env, task, draw, episodes, key)

    return Protocol(run, base.metrics(config.metric), episodes)
