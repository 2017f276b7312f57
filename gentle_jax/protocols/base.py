"""Pieces that protocols share."""

import jax
import jax.numpy as jnp

from gentle_jax import evaluation
from gentle_jax.types import Outcome

METRICS = {
    "final": lambda returns: returns[..., -1],  # CTMRL's reported episode
    "all": lambda returns: returns.mean(-1),  # GENTLE's reported mean
    "first": lambda returns: returns[..., 0],
}


def metrics(native):
    """Returns the table of metrics with the suite's native one first."""
    return {native: METRICS[native]} | METRICS


def num_episodes(steps, horizon):
    """Returns how many full-length episodes are begun within a budget of environment steps."""
    return -(-steps // horizon)


def scored_episode(algorithm, state, env, task, z, key):
    """Runs one deterministic episode at a fixed z; returns an Outcome."""
    policy = evaluation.deterministic(algorithm.rl, state.rl, z)
    rows, mask = evaluation.rollout(env, task, policy, key)
    return Outcome(evaluation.episode_return(rows, mask), rows, mask)


def growing_context(algorithm, state, env, task, draw, episodes, key, repeat=True):
    """Scored episodes before each of which `draw(key) -> (Transition [C], mask [C])` adds context.

    GENTLE's scored rollouts and CTMRL's "offline" protocol: z is the mean over all rows so far.
    Scored episodes never enter the context; repeat=False draws before the first one only.
    Returns an Outcome with a leading axis [episodes].
    """

    def body(belief, inputs):
        k, index = inputs
        k_draw, k_z, k_episode = jax.random.split(k, 3)
        longer = algorithm.rep.extend(state.rep, belief, *draw(k_draw))
        belief = longer if repeat else choose(index == 0, longer, belief)
        z = algorithm.rep.sample(state.rep, belief, k_z)
        return belief, scored_episode(algorithm, state, env, task, z, k_episode)

    prior = algorithm.rep.prior(state.rep)
    inputs = (jax.random.split(key, episodes), jnp.arange(episodes))
    return jax.lax.scan(body, prior, inputs)[1]


def prior_z(algorithm, state, key):
    """Returns z of the prior belief (zeros for set encoders)."""
    return algorithm.rep.sample(state.rep, algorithm.rep.prior(state.rep), key)


def choose(predicate, new, old):
    """Returns `new` where a scalar predicate holds, else `old`, over a tree."""
    return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), new, old)
