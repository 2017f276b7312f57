"""GENTLE's one-shot protocol: one exploration, sampled policy at the prior z, is the context.

Exactly `exploration_steps` transitions (default one horizon), not scored; episodes that end early
are followed by new ones. Before every scored episode one horizon of them is drawn with replacement
and added to the context (gentle_suite.md sec. 4); `context_resample=False` encodes them once.
"""

import jax
import jax.numpy as jnp

from gentle_jax import evaluation
from gentle_jax.protocols import base
from gentle_jax.types import Protocol


def make(config, env):
    """Returns the Protocol. Args: config, an EvalConfig; env, an Env."""
    episodes = base.num_episodes(config.scored_steps, env.horizon)
    explored = config.exploration_steps or env.horizon

    def run(algorithm, state, env, task, offline, key):
        del offline
        k_prior, k_explore, k_score = jax.random.split(key, 3)
        z = base.prior_z(algorithm, state, k_prior)
        policy = evaluation.stochastic(algorithm.rl, state.rl, z)
        rows, mask = evaluation.rollout(env, task, policy, k_explore, explored, True)

        def resample(k):
            index = jax.random.randint(k, (env.horizon,), 0, explored)
            return jax.tree.map(lambda x: x[index], rows), jnp.ones(env.horizon)

        again = config.context_resample
        draw = resample if again else lambda k: (rows, mask)
        return base.growing_context(
            algorithm, state, env, task, draw, episodes, k_score, repeat=again
        )

    return Protocol(run, base.metrics(config.metric), episodes)
