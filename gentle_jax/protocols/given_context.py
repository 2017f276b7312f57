"""The context is given: rows of the task's own offline data.

    repeat: draw H rows of the task's data, with replacement, into the context
            z = mean over all rows so far; one scored episode
    until B scored steps

An encoder of ordered contexts gets whole episodes in time order instead, until they have H rows.
Where a belief moves within an episode, each scored episode begins at the belief of the context, and
what it has seen is forgotten after it. GENTLE's "offline" test; docs/methods/protocols.md.
"""

import jax
import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax.config import EvalConfig
from gentle_jax.protocols import base
from gentle_jax.types import Env, Protocol

READS = ("own",)


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol."""
    budget = config.scored_steps

    def run(algorithm, state, env, task, offline, key):
        def draw(k):
            if algorithm.rep.ordered_context:
                return data_lib.whole_episodes(offline.own, env.horizon, k)
            rows = data_lib.context_rows(offline.own, jnp.zeros(1, jnp.int32), env.horizon, k)
            return jax.tree.map(lambda x: x[0], rows), jnp.ones(env.horizon)

        prior = algorithm.rep.prior(state.rep)
        in_step = offline.own.split > 1  # devices exchange rows
        return base.growing_context(
            algorithm, state, env, task, budget, key, prior, draw, in_step=in_step
        )

    return Protocol(run, base.metrics(config.metric), base.num_slots(env, budget))
