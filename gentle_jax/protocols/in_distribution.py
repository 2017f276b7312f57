"""z of training tasks first, then contexts that keep to what the data know: IDAQ's test.

    before: z_i of one context of every training task; best = none
    reference stage, episodes 1 .. X:
        of the z of some training tasks, drawn with replacement, the one that is farthest from
        those tried; one episode; a new best: the context is this episode only, z = encode(context)
    iterative stage:
        one episode with z; a new best: it joins the context, z = encode(context)
        else: the context without the best episode, z = that of the best episode
    last: one episode with z of the best one; only its return is reported

All episodes are deterministic. An episode is the last one if the budget ends within H steps: where
episodes end early there may be several of them, all with z of the best one. `eval.quantifier` says
what is best: the return, or the least error or spread of what is predicted of the episode's rows
at the z that it was run with. Where a belief moves within an episode, every episode begins at the
belief in place of z. docs/methods/protocols.md; docs/methods/idaq.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gentle_jax import errors
from gentle_jax.config import EvalConfig
from gentle_jax.protocols import base
from gentle_jax.types import Belief, Env, Protocol, RandomKey

DEFAULT = 20  # candidates, where there are as many training tasks
READS = ("train",)


class Trial(NamedTuple):
    """What the episodes so far have left. "z" is what an agent acts by, of `base.infer`."""

    number: Int[Array, ""]  # of episodes
    distance: Float[Array, " task"]  # of every training task's z from the nearest that was tried
    best: Float[Array, ""]  # the best episode's score
    best_z: Any  # that it was run with
    context: Belief
    without: Belief  # the context without the best episode
    z: Any  # of the next episode, once the reference stage is over


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol; UserError for an unknown quantifier or too many candidates."""
    if config.quantifier not in QUANTIFIERS:
        raise errors.unknown("eval.quantifier", config.quantifier, QUANTIFIERS)
    judge, needs = QUANTIFIERS[config.quantifier]
    budget, horizon, candidates = config.online_steps, env.horizon, num_candidates(config, env)
    ids = jnp.arange(len(env.train_ids))

    def run(algorithm, state, env, task, offline, key):
        rep, act = algorithm.rep, base.deterministic(algorithm, state)
        k_tasks, k_prior, k_episodes = jax.random.split(key, 3)
        known, z = base.of_training_tasks(algorithm, state, env, offline.train, ids, k_tasks)
        prior = rep.prior(state.rep)

        def body(trial, inputs):
            k, taken = inputs
            k_candidate, k_episode, k_z = jax.random.split(k, 3)
            reference = trial.number < config.reference_episodes
            chosen = farthest(trial.distance, candidates, k_candidate)
            used = base.choose(reference, jax.tree.map(lambda x: x[chosen], known), trial.z)
            last = (taken + horizon >= budget) & (trial.best > -jnp.inf)
            used = base.choose(last, trial.best_z, used)
            outcome, _ = base.episode(algorithm, state, env, task, act, used, k_episode)
            context = base.choose(reference, prior, trial.context)
            longer = rep.extend(state.rep, context, outcome.rows, outcome.mask)
            score = judge(algorithm, state, env, outcome, _z_of(algorithm, state, used))
            seen = Trial(
                number=trial.number,
                distance=trial.distance,
                best=score,
                best_z=used,
                context=longer,
                without=context,
                z=base.infer(algorithm, state, longer, k_z),
            )
            back = trial._replace(context=trial.without, z=trial.best_z)
            worse = base.choose(reference, trial, back)
            near = jnp.minimum(trial.distance, _distance(z, z[chosen]))
            trial = base.choose(score > trial.best, seen, worse)
            return trial._replace(number=trial.number + 1, distance=near), outcome

        z_prior = base.infer(algorithm, state, prior, k_prior)
        none = -jnp.inf * jnp.ones(())
        first = Trial(
            jnp.zeros((), jnp.int32), jnp.full(len(ids), jnp.inf), none, z_prior, prior, prior,
            z_prior,
        )  # fmt: skip
        outcomes = base.until(env, budget, body, first, k_episodes)
        return jax.tree.map(lambda x: x[-1:], outcomes)

    return Protocol(run, base.metrics(config.metric), 1, needs)


def num_candidates(config: EvalConfig, env: Env) -> int:
    """Returns how many training tasks are drawn; raises UserError for more than there are."""
    most = len(env.train_ids)
    if config.num_candidates > most:
        raise errors.UserError(
            f"eval.num_candidates is {config.num_candidates}: expected at most {most}, the "
            f"training tasks; pass --config.eval.num_candidates={most}, or 0 for up to {DEFAULT}"
        )
    return config.num_candidates or min(DEFAULT, most)


def farthest(distance: Float[Array, " task"], count: int, key: RandomKey) -> Int[Array, ""]:
    """Returns of `count` tasks, drawn with replacement, the one of largest distance."""
    drawn = jax.random.randint(key, (count,), 0, len(distance))
    return drawn[distance[drawn].argmax()]


def _distance(z, one):
    """Returns the mean squared distance [task] of every z [task, Z] from one."""
    return ((z - one) ** 2).sum(-1) / max(z.shape[-1], 1)  # an agent may have no z at all


def _z_of(algorithm, state, used):
    """Returns z [Z] at the start of an episode."""
    if isinstance(used, base.Moving):
        return algorithm.rep.sample(state.rep, used.belief, used.key)
    return used


def _return(algorithm, state, env, outcome, z):
    return outcome.returns


def _prediction_error(algorithm, state, env, outcome, z):
    """Minus the mean squared error of predicted rewards, those that contexts see."""
    guess = algorithm.rep.predict_reward(state.rep, z, outcome.rows)
    if env.context_reward is not None and not algorithm.rep.predicts_context_reward:
        guess = env.context_reward(guess)
    return -_mean((guess - outcome.rows.context_reward) ** 2, outcome.mask)


def _spread(algorithm, state, env, outcome, z):
    """Minus how far the members of an ensemble disagree."""
    return -_mean(algorithm.rep.uncertainty(state.rep, z, outcome.rows), outcome.mask)


def _mean(values, mask):
    return jnp.where(mask > 0, values, 0.0).sum() / mask.sum()


# name -> ((algorithm, state, env, Outcome of one episode, z) -> score, what it needs)
QUANTIFIERS: dict[str, tuple[Callable, tuple]] = {
    "return": (_return, ()),
    "prediction_error": (_prediction_error, ("predict_reward",)),
    "ensemble": (_spread, ("uncertainty",)),
}
