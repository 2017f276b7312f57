"""CTMRL's two-phase protocol, "np_online" in its code (ctmrl_suite.md sec. 5).

Pairs of an exploration and a scored episode until B scored steps were taken. n counts scored steps
before the pair. Explorations use the sampled policy, but step j of one is uniform random while
n + j < B / 2; only explorations enter the context. z is inferred from the whole context after a
pair, once n (this pair's episode included) reaches X * H: the z of an episode therefore never
saw the exploration just before it.
"""

import jax
import jax.numpy as jnp

from gentle_jax import evaluation
from gentle_jax.protocols import base
from gentle_jax.types import Outcome, Protocol


def make(config, env):
    """Returns the Protocol. Args: config, an EvalConfig; env, an Env.

    Environments whose episodes end early begin the same number of pairs, so they may use fewer
    steps than B; there the budget is counted in full horizons.
    """
    horizon, half = env.horizon, config.two_phase_steps / 2
    pairs = base.num_episodes(config.two_phase_steps, horizon)

    def run(algorithm, state, env, task, offline, key):
        del offline

        def pair(carry, inputs):
            belief, z = carry
            k, n = inputs
            k_explore, k_score, k_z = jax.random.split(k, 3)

            def episode(belief, inputs):
                """Either kind: an exploration, which extends the belief, or a scored episode."""
                k, exploring = inputs

                def policy(obs, k_action, step):
                    k_policy, k_uniform = jax.random.split(k_action)
                    sampled = algorithm.rl.act(state.rl, obs, z, k_policy)
                    uniform = jax.random.uniform(k_uniform, sampled.shape, minval=-1.0, maxval=1.0)
                    explore = jnp.where(n + step < half, uniform, sampled)
                    return jnp.where(exploring, explore, algorithm.rl.mode(state.rl, obs, z))

                rows, mask = evaluation.rollout(env, task, policy, k)
                longer = algorithm.rep.extend(state.rep, belief, rows, mask)
                outcome = Outcome(evaluation.episode_return(rows, mask), rows, mask)
                return base.choose(exploring, longer, belief), outcome

            keys = jnp.stack([k_explore, k_score])
            belief, outcomes = jax.lax.scan(episode, belief, (keys, jnp.array([True, False])))
            ready = n + horizon >= config.context_episodes * horizon
            z = base.choose(ready, algorithm.rep.sample(state.rep, belief, k_z), z)
            return (belief, z), jax.tree.map(lambda x: x[1], outcomes)

        k_prior, k_pairs = jax.random.split(key)
        first = (algorithm.rep.prior(state.rep), base.prior_z(algorithm, state, k_prior))
        steps = jnp.arange(pairs) * horizon
        return jax.lax.scan(pair, first, (jax.random.split(k_pairs, pairs), steps))[1]

    return Protocol(run, base.metrics(config.metric), pairs)
