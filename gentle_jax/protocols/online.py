"""Deterministic episodes, each of which enters the context (ctmrl_suite.md sec. 5, "online").

The first X episodes run at the prior z; from then on z is inferred again after every episode.
"""

import jax
import jax.numpy as jnp

from gentle_jax.protocols import base
from gentle_jax.types import Protocol


def make(config, env):
    """Returns the Protocol. Args: config, an EvalConfig; env, an Env."""
    episodes = base.num_episodes(config.two_phase_steps, env.horizon)

    def run(algorithm, state, env, task, offline, key):
        del offline

        def body(carry, inputs):
            belief, z = carry
            k, done = inputs
            k_episode, k_z = jax.random.split(k)
            outcome = base.scored_episode(algorithm, state, env, task, z, k_episode)
            belief = algorithm.rep.extend(state.rep, belief, outcome.rows, outcome.mask)
            ready = done + 1 >= config.context_episodes
            return (
                belief,
                base.choose(ready, algorithm.rep.sample(state.rep, belief, k_z), z),
            ), outcome

        k_prior, k_episodes = jax.random.split(key)
        first = (algorithm.rep.prior(state.rep), base.prior_z(algorithm, state, k_prior))
        inputs = (jax.random.split(k_episodes, episodes), jnp.arange(episodes))
        return jax.lax.scan(body, first, inputs)[1]

    return Protocol(run, base.metrics(config.metric), episodes)
