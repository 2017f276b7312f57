"""Deterministic episodes, each of which enters the context: CTMRL's second test.

    n = 0 (scored steps so far); z at the prior
    repeat: one scored episode with z; it enters the context; n += its length
            if n >= X H: z = mean over the whole context
    until n >= B

Where a belief moves within an episode, it goes on from each episode to the next: X has no meaning
then, and no episode enters twice. docs/methods/protocols.md.
"""

import jax

from gentle_jax.config import EvalConfig
from gentle_jax.protocols import base
from gentle_jax.types import Env, Protocol


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol."""
    budget = config.online_steps

    def run(algorithm, state, env, task, offline, key):
        del offline
        act, moves = base.deterministic(algorithm, state), algorithm.rep.observe is not None

        def body(carry, inputs):
            belief, z = carry
            k, taken = inputs
            k_episode, k_z = jax.random.split(k)
            outcome, seen = base.episode(algorithm, state, env, task, act, z, k_episode)
            belief = base.learned(algorithm, state, belief, outcome.rows, outcome.mask, seen)
            again = base.infer(algorithm, state, belief, k_z)
            ready = taken + base.length(env, outcome) >= config.context_episodes * env.horizon
            return (belief, again if moves else base.choose(ready, again, z)), outcome

        k_prior, k_episodes = jax.random.split(key)
        first = (algorithm.rep.prior(state.rep), base.prior_z(algorithm, state, k_prior))
        return base.until(env, budget, body, first, k_episodes)

    return Protocol(run, base.metrics(config.metric), base.num_slots(env, budget))
