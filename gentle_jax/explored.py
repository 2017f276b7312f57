"""Codes of contexts that the policies collect themselves, as GENTLE's Figure 2 shows them.

    in each task:  play some episodes with the sampled policy at the prior z
    repeat N times: draw H of these rows, with replacement;  z of this context

Source: docs/methods/gentle.md, "Ablations". An encoder of ordered contexts gets N episodes as they
came instead: single rows are no context there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gentle_jax.protocols import base
from gentle_jax.rng import stream
from gentle_jax.types import Algorithm, Env


def make(algorithm: Algorithm, env: Env, num_contexts: int, episodes: int = 5) -> Callable:
    """Returns explore(state, run_key, tasks, at) -> z [task, num_contexts, Z].

    Args: tasks, task leaves [task, ...]; at, the training step, which only picks random keys.
    """
    rep, horizon = algorithm.rep, env.horizon
    steps = horizon if rep.ordered_context else horizon * episodes
    restarts = env.ends_early or steps > horizon

    def play(state, task, key):
        k_prior, k_play = jax.random.split(key)
        act, z = base.sampled(algorithm, state), base.prior_z(algorithm, state, k_prior)
        settings = {"steps": steps, "restarts": restarts}
        return base.play(algorithm, state, env, task, act, z, k_play, **settings)

    def code(state, rows, mask, key):
        belief = rep.extend(state.rep, rep.prior(state.rep), rows, mask)
        return rep.sample(state.rep, belief, key)

    def drawn(state, task, key):
        k_play, k_draw = jax.random.split(key)
        rows, *_ = play(state, task, k_play)

        def one(k):
            k_index, k_z = jax.random.split(k)
            index = jax.random.randint(k_index, (horizon,), 0, steps)
            context = jax.tree.map(lambda x: x[index], rows)
            return code(state, context, jnp.ones(horizon), k_z)

        return jax.lax.map(one, jax.random.split(k_draw, num_contexts), batch_size=num_contexts)

    def whole(state, task, key):
        def one(k):
            k_play, k_z = jax.random.split(k)
            rows, mask, _ = play(state, task, k_play)
            return code(state, rows, mask, k_z)

        return jax.lax.map(one, jax.random.split(key, num_contexts))

    def explore(state, run_key, tasks, at):
        number = jax.tree.leaves(tasks)[0].shape[0]
        keys = jax.random.split(stream(run_key, "explore", at), number)
        of_task = whole if rep.ordered_context else drawn
        return jax.lax.map(lambda each: of_task(state, *each), (tasks, keys))

    return explore
