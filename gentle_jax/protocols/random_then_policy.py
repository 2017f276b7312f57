"""CTMRL's two-phase test ("np_online" in its code): first random actions, then the policy.

    n = 0 (scored steps so far); z at the prior
    repeat:
        explore: episodes with the sampled policy at z until there are H transitions or more;
                 step j of such an episode is U(-1, 1)^A while n + j < B / 2
                 all of it enters the context
        score:   one episode with z; it does not enter the context; n += its length
        if n >= X H: z = mean over the whole context
    until n >= B

n stays within a pair. z is inferred after a pair only: a scored episode never saw the exploration
just before it. Where a belief moves within an episode, it goes on over all episodes of all
explorations; a scored episode begins at the belief that z would be inferred from, and what it has
seen is forgotten after it. docs/methods/protocols.md.
"""

import jax
import jax.numpy as jnp

from gentle_jax import evaluation
from gentle_jax.config import EvalConfig
from gentle_jax.protocols import base
from gentle_jax.types import Env, Outcome, Protocol


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol."""
    budget, half = config.online_steps, config.online_steps / 2

    def run(algorithm, state, env, task, offline, key):
        del offline
        sampled, mode = base.sampled(algorithm, state), base.deterministic(algorithm, state)
        horizon = env.horizon

        def pair(carry, inputs):
            belief, z = carry
            k, taken = inputs
            k_explore, k_score, k_z = jax.random.split(k, 3)

            def play(belief, inputs):
                """Either kind: an exploration, which extends the belief, or a scored episode."""
                k, exploring = inputs

                def act(obs, z, k_action, step):
                    k_policy, k_uniform = jax.random.split(k_action)
                    drawn = sampled(obs, z, k_policy, step)
                    uniform = jax.random.uniform(k_uniform, drawn.shape, minval=-1.0, maxval=1.0)
                    explore = jnp.where(taken + step < half, uniform, drawn)
                    return jnp.where(exploring, explore, mode(obs, z, k_policy, step))

                now = z
                if isinstance(z, base.Moving):
                    now = base.choose(exploring, z._replace(belief=belief), z)
                settings = {}
                if env.ends_early:  # whole episodes: `enough` of them, or one
                    enough = jnp.where(exploring, horizon, 1)
                    settings = {"how": evaluation.play_whole, "enough": enough}
                rows, mask, seen = base.play(algorithm, state, env, task, act, now, k, **settings)
                longer = base.learned(algorithm, state, belief, rows, mask, seen)
                spent = base.cost_of(env, rows, mask)
                rows, mask = jax.tree.map(lambda x: x[:horizon], (rows, mask))
                outcome = Outcome(evaluation.episode_return(rows, mask), rows, mask, spent)
                return base.choose(exploring, longer, belief), outcome

            keys = jnp.stack([k_explore, k_score])
            belief, outcomes = jax.lax.scan(play, belief, (keys, jnp.array([True, False])))
            scored = jax.tree.map(lambda x: x[1], outcomes)
            scored = scored._replace(cost=jax.tree.map(lambda x: x[0], outcomes.cost))
            ready = taken + base.length(env, scored) >= config.context_episodes * horizon
            z = base.choose(ready, base.infer(algorithm, state, belief, k_z), z)
            return (belief, z), scored

        k_prior, k_pairs = jax.random.split(key)
        first = (algorithm.rep.prior(state.rep), base.prior_z(algorithm, state, k_prior))
        return base.until(env, budget, pair, first, k_pairs)

    return Protocol(run, base.metrics(config.metric), base.num_slots(env, budget))
