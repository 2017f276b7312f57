"""GENTLE's one-shot test: one exploration, the sampled policy at the prior z, is the context.

    explore: exactly H transitions, not scored; an episode that ends early is followed by a new one
    repeat: draw H of these rows, with replacement, into the context
            z = mean over all rows so far; one scored episode
    until B scored steps

`exploration_steps` is the number of transitions (0: H); `context_resample=False` encodes them once.
An encoder of ordered contexts gets the exploration as it came, once, not single rows. Where a
belief moves within an episode, it goes on over the episodes of the exploration, which is then in it
already: nothing is drawn, each scored episode begins at that belief, and what it has seen is
forgotten after it. docs/methods/protocols.md.
"""

import jax
import jax.numpy as jnp

from gentle_jax.config import EvalConfig
from gentle_jax.protocols import base
from gentle_jax.types import Env, Protocol


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol."""
    budget = config.scored_steps
    explored = config.exploration_steps or env.horizon

    def run(algorithm, state, env, task, offline, key):
        del offline
        rep, act = algorithm.rep, base.sampled(algorithm, state)
        k_prior, k_explore, k_score = jax.random.split(key, 3)
        z = base.prior_z(algorithm, state, k_prior)
        rows, mask, seen = base.play(
            algorithm,
            state,
            env,
            task,
            act,
            z,
            k_explore,
            steps=explored,
            restarts=env.ends_early or explored > env.horizon,
        )

        def resample(k):
            index = jax.random.randint(k, (env.horizon,), 0, explored)
            return jax.tree.map(lambda x: x[index], rows), jnp.ones(env.horizon)

        again = config.context_resample and not rep.ordered_context
        draw = resample if again else lambda k: (rows, mask)
        known = rep.observe is not None
        return base.growing_context(
            algorithm, state, env, task, budget, k_score,
            belief=seen if known else rep.prior(state.rep),
            draw=None if known else draw,
            repeat=again,
            spent=base.cost_of(env, rows, mask),
        )  # fmt: skip

    return Protocol(run, base.metrics(config.metric), base.num_slots(env, budget))
