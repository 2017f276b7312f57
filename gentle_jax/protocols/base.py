"""Pieces that protocols share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gentle_jax import data as data_lib
from gentle_jax import evaluation, learner
from gentle_jax.types import (
    AgentState,
    Algorithm,
    Belief,
    Cost,
    Dataset,
    Env,
    Outcome,
    RandomKey,
    Task,
    Transition,
)


def mean_return(returns: Any) -> Any:
    """Returns the mean [...] over the episodes of returns [..., E] of a protocol.

    NaN between the first and the last slot means that there was no such episode (`until`); a first
    or last return that is NaN belongs to a run that diverged, and stays.
    """
    returns = np.asarray(returns)
    there = ~np.isnan(returns)
    there[..., [0, -1]] = True
    return returns.mean(-1) if there.all() else returns.mean(-1, where=there)


METRICS = {
    "final": lambda returns: returns[..., -1],  # CTMRL's reported episode
    "all": mean_return,  # GENTLE's reported mean
    "first": lambda returns: returns[..., 0],
}


NOTHING = Cost()


def metrics(native: str) -> dict:
    """Returns the table of metrics with the suite's native one first."""
    return {native: METRICS[native]} | METRICS


def num_episodes(steps: int, horizon: int) -> int:
    """Returns how many full-length episodes are begun within a budget of environment steps."""
    return -(-steps // horizon)


def num_slots(env: Env, budget: int) -> int:
    """Returns how many scored episodes `until` has room for: where they may end early, one a step.

    An episode has at least one step, so there is always room.
    """
    return budget if env.ends_early else num_episodes(budget, env.horizon)


def until(
    env: Env, budget: int, body: Callable, carry: Any, key: RandomKey, in_step: bool = False
) -> Outcome:
    """Scores episodes until they have `budget` steps.

    Args: body, (carry, (key, n)) -> (carry, Outcome of one episode); n, the scored steps before it;
    in_step, whether the body exchanges data between devices, which must then go round equally often
    (a split Dataset). The cost of a body's Outcome is what it spent itself before the scored
    episode; they are added up here, scored episodes too.

    Where no episode ends early this is a scan over ceil(budget / H) episodes. Elsewhere it is a
    loop of as many rounds as it takes, with a slot for each possible episode: slot 0 has the first,
    the last slot the last, those between them the others in order and then NaN; rows and mask are
    the last episode's only. A return that is not finite ends the loop.
    """
    slots = num_slots(env, budget)
    keys = jax.random.split(key, slots)
    if not env.ends_early:
        outcomes = jax.lax.scan(body, carry, (keys, jnp.arange(slots) * env.horizon))[1]
        return with_costs(env, outcomes)

    def more(loop):
        _, taken, _, _, _, last = loop
        return (taken < budget) & jnp.isfinite(last.returns)

    def go(loop):
        carry, taken, number, scores, total, _ = loop
        carry, last = body(carry, (keys[number], taken))
        last = last._replace(cost=jax.tree.map(jnp.add, total, last.cost))
        taken = taken + length(env, last)
        total = jax.tree.map(jnp.add, last.cost, _own_cost(env, last.mask))
        put = lambda all_slots, new: all_slots.at[number].set(new)
        scores = jax.tree.map(put, scores, (last.returns, last.cost))
        return carry, taken, number + 1, scores, total, last

    def anywhere(loop):
        return jax.lax.pmax(more(loop).astype(jnp.int32), data_lib.DEVICES) > 0

    zero = jnp.zeros((), jnp.int32)
    scores = jnp.zeros(()), Cost(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    rows, mask = evaluation.empty_rows(env, env.horizon), jnp.zeros(env.horizon)
    blank = Outcome(scores[0], rows, mask, scores[1])
    empty = jax.tree.map(lambda _: jnp.zeros(slots), scores)
    loop = (carry, zero, zero, empty, scores[1], blank)
    if in_step:
        loop = jax.lax.while_loop(anywhere, lambda loop: choose(more(loop), go(loop), loop), loop)
    else:
        loop = jax.lax.while_loop(more, go, loop)
    _, _, number, scores, _, last = loop
    used = jnp.arange(slots) < jnp.maximum(number - 1, 1)
    put = lambda all_slots, end: jnp.where(used, all_slots, jnp.nan).at[-1].set(end)
    returns, cost = jax.tree.map(put, scores, (last.returns, last.cost))
    rows, mask = jax.tree.map(lambda x: x[None], (last.rows, last.mask))
    return Outcome(returns, rows, mask, cost)


def with_costs(env: Env, outcomes: Outcome) -> Outcome:
    """Returns scored episodes [E], one after the other, with the Cost before each.

    Args: outcomes, whose cost is what was spent before each, beside scored episodes.
    """

    def before(spent, own):
        spent, own = (jnp.broadcast_to(x, outcomes.returns.shape) for x in (spent, own))
        return jnp.cumsum(spent + own) - own

    own = _own_cost(env, outcomes.mask)
    return outcomes._replace(cost=jax.tree.map(before, outcomes.cost, own))


def _own_cost(env, mask):
    """Returns the Cost of scored episodes. Args: mask [..., H]."""
    return Cost(mask.sum(-1) if env.ends_early else float(env.horizon), 1.0, 0.0)


def cost_of(env: Env, rows: Transition, mask: Float[Array, " steps"]) -> Cost:
    """Returns the Cost of rows as `play` returns them: some episodes, the last may be cut."""
    steps = mask.shape[0]
    if not env.ends_early:
        return Cost(float(steps), float(num_episodes(steps, env.horizon)))

    return Cost(mask.sum(), jnp.where(begins(env, rows.terminal), mask, 0.0).sum())


def begins(env: Env, terminal: Float[Array, " steps"]) -> Bool[Array, " steps"]:
    """Returns which of some consecutive rows are the first of an episode."""

    def tick(clock, end):
        over = (end > 0) | (clock + 1 >= env.horizon)
        return jnp.where(over, 0, clock + 1), clock == 0

    return jax.lax.scan(tick, jnp.zeros((), jnp.int32), terminal)[1]


def length(env: Env, outcome: Outcome) -> Any:
    """Returns how many steps the one episode of an Outcome took."""
    return outcome.mask.sum().astype(jnp.int32) if env.ends_early else env.horizon


class Moving(NamedTuple):
    """A z that follows a belief: it is drawn from it at every action, always with one key."""

    belief: Belief
    key: RandomKey


def infer(algorithm: Algorithm, state: AgentState, belief: Belief, key: RandomKey) -> Any:
    """Returns what an agent acts by: z [Z], or a Moving where the representation observes."""
    if algorithm.rep.observe is not None:
        return Moving(belief, key)
    return algorithm.rep.sample(state.rep, belief, key)


def prior_z(algorithm: Algorithm, state: AgentState, key: RandomKey) -> Any:
    """Returns `infer` of the prior belief (zeros for set encoders)."""
    return infer(algorithm, state, algorithm.rep.prior(state.rep), key)


def of_training_tasks(
    algorithm: Algorithm,
    state: AgentState,
    env: Env,
    data: Dataset,
    task_id: Int[Array, " task"],
    key: RandomKey,
) -> tuple[Any, Float[Array, "task Z"]]:
    """Returns what an agent acts by after one context of each training task, and its z.

    The first is stacked [task], as `infer` returns it. Contexts are those of training, or whole
    episodes in time order where the encoder asks for them. Tasks come one after the other: contexts
    are large, and all tasks of an evaluation are tested side by side.
    """
    rep = algorithm.rep

    def one(inputs):
        k_context, k_z = jax.random.split(inputs[1])
        ids = inputs[0][None]
        if rep.ordered_context:
            stored = data_lib.view_tasks(data, ids)
            rows, mask = data_lib.whole_episodes(stored, env.horizon, k_context)
        else:
            context = rep.context(state.rep, data, ids, k_context)
            if rep.observe is None:
                z = learner.encode_tasks(rep, state.rep, context, ids, k_z)[0]
                return z, z
            rows = jax.tree.map(lambda x: x[0], context)
            mask = jnp.ones(rows.reward.shape)
        belief = rep.extend(state.rep, rep.prior(state.rep), rows, mask)
        return infer(algorithm, state, belief, k_z), rep.sample(state.rep, belief, k_z)

    return jax.lax.map(one, (task_id, jax.random.split(key, len(task_id))))


def deterministic(algorithm: Algorithm, state: AgentState) -> Callable:
    """Returns act(obs, z, key, step), the deterministic policy."""
    return lambda obs, z, key, step: algorithm.rl.mode(state.rl, obs, z)


def sampled(algorithm: Algorithm, state: AgentState) -> Callable:
    """Returns act(obs, z, key, step), the sampled policy."""
    return lambda obs, z, key, step: algorithm.rl.act(state.rl, obs, z, key)


def play(
    algorithm: Algorithm,
    state: AgentState,
    env: Env,
    task: Task,
    act: Callable,
    z: Any,
    key: RandomKey,
    how: Callable = evaluation.play,
    **settings: Any,
) -> tuple[Transition, Float[Array, " steps"], Belief]:
    """Runs `act(obs, z, key, step)`; returns (rows, mask, belief after a Moving z, else None).

    Args: z, of `infer`; how, `evaluation.play` or `play_whole`, with their settings.
    """
    if not isinstance(z, Moving):
        policy = lambda obs, k, step, belief: act(obs, z, k, step)
        return how(env, task, policy, key, **settings)
    rep = algorithm.rep
    policy = lambda obs, k, step, belief: act(obs, rep.sample(state.rep, belief, z.key), k, step)
    observe = lambda belief, row: rep.observe(state.rep, belief, row)
    return how(env, task, policy, key, belief=z.belief, observe=observe, **settings)


def learned(
    algorithm: Algorithm,
    state: AgentState,
    belief: Belief,
    rows: Transition,
    mask: Array,
    seen: Any,
) -> Belief:
    """Returns a belief with what `play` has returned in its context.

    What was observed step by step is in `seen` already, and is not counted again.
    """
    if algorithm.rep.observe is not None:
        return seen
    return algorithm.rep.extend(state.rep, belief, rows, mask)


def episode(
    algorithm: Algorithm,
    state: AgentState,
    env: Env,
    task: Task,
    act: Callable,
    z: Any,
    key: RandomKey,
) -> tuple[Outcome, Belief]:
    """Runs one episode with `act`; returns (Outcome, belief after it as `play` returns it)."""
    how = evaluation.play_whole if env.ends_early else evaluation.play
    rows, mask, seen = play(algorithm, state, env, task, act, z, key, how)
    rows, mask = jax.tree.map(lambda x: x[: env.horizon], (rows, mask))
    return Outcome(evaluation.episode_return(rows, mask), rows, mask), seen


def scored_episode(
    algorithm: Algorithm, state: AgentState, env: Env, task: Task, z: Any, key: RandomKey
) -> Outcome:
    """Runs one deterministic episode. Args: z, of `infer` or `prior_z`."""
    act = deterministic(algorithm, state)
    return episode(algorithm, state, env, task, act, z, key)[0]


def growing_context(
    algorithm: Algorithm,
    state: AgentState,
    env: Env,
    task: Task,
    budget: int,
    key: RandomKey,
    belief: Belief,
    draw: Callable | None,
    repeat: bool = True,
    in_step: bool = False,
    spent: Cost = NOTHING,
) -> Outcome:
    """Scored episodes before each of which `draw(key) -> (Transition [C], mask [C])` adds context.

    GENTLE's scored rollouts and CTMRL's "offline" protocol: z is the mean over all rows so far.
    Scored episodes never enter the context. Args: belief, before the first draw; draw, None: the
    belief stays; repeat, False: draws before the first episode only; in_step as in `until`; spent,
    before all of it.
    """

    def body(belief, inputs):
        k, taken = inputs
        k_draw, k_z, k_episode = jax.random.split(k, 3)
        if draw is not None:
            longer = algorithm.rep.extend(state.rep, belief, *draw(k_draw))
            belief = longer if repeat else choose(taken == 0, longer, belief)
        z = infer(algorithm, state, belief, k_z)
        outcome = scored_episode(algorithm, state, env, task, z, k_episode)
        return belief, outcome._replace(cost=choose(taken == 0, spent, Cost()))

    return until(env, budget, body, belief, key, in_step)


def predicted_kind(algorithm: Algorithm, env: Env) -> Callable:
    """Returns the function of dense rewards that gives rewards as `predict_reward` predicts them.

    It does nothing where these are dense, or contexts see the dense reward.
    """
    if env.context_reward is None or not algorithm.rep.predicts_context_reward:
        return lambda reward: reward
    return env.context_reward


def choose(predicate: Array, new: Any, old: Any) -> Any:
    """Returns `new` where a scalar predicate holds, else `old`, over a tree."""
    return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), new, old)
