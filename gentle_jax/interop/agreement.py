"""Whether imported rows are of the environment that they are imported for: tested on a sample.

For every task: starts against `Env.reset`, lengths against the horizon, transitions and rewards
against `Env.step` (by its `replay`), rewards against `Env.relabel`. Errors are root mean squares
over a sample, the largest twentieth left out, as shares of what rows change at all: 0 is equal, 1
as if nothing were known. A misfit comes with its likeliest reason.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from gentle_jax import rng
from gentle_jax.interop import reasons, samples
from gentle_jax.storage import Fields
from gentle_jax.types import Env, HostArray

STEP_ROWS = 100  # of each task, stepped once more
REWARD_ROWS = 500  # of each task, relabelled
RESETS = 2000
EQUAL = 0.02  # errors up to here are those of rounded numbers
CLOSE = 0.005  # ... unless rewards can be relabelled, and another task or scale explains them
DIFFERENT = 0.15  # errors from here on are no longer those of another physics engine
COARSE = 0.3  # the largest error that may be left to rounding
SEEN_ROUNDING = 0.05  # of context rewards, which are steep near a goal
ODD_EPISODES = 0.05  # share of a task's episodes that may begin or go on oddly


class Misfit(NamedTuple):
    """One task whose rows are not those of the environment."""

    task: int
    text: str
    size: float  # larger is worse


def with_sparse_rewards(env: Env) -> Env:
    """Returns an Env that predicts sparse rewards of rows: what some sources hold only."""
    near = env.context_reward

    def replay(task, before, rows):
        step = env.replay(task, before, rows)
        return step._replace(reward=near(step.reward))

    relabel = env.relabel and (lambda task, rows: near(env.relabel(task, rows)))
    return env._replace(relabel=relabel, replay=env.replay and replay, context_reward=None)


def examine(fields: Fields, make_env: Callable[[str], Env], modes: Sequence[str]) -> dict:
    """Returns the JSON-able report on rows [task, level, episode, step, ...].

    `misfits` [{"task", "text"}], the worst first; lists over tasks `transition_error`,
    `reward_error` and `reward_correlation`, None where it cannot be known; the `physics` that fits
    best; how many `rows` of each task were looked at. Args: make_env, a mode to its Env; modes, the
    first one is tried first, others where it does not fit.
    """
    env, tasks = make_env(modes[0]), range(len(fields["mask"]))
    count = min(REWARD_ROWS, max(samples.lengths(fields, task).sum() for task in tasks))
    drawn = [samples.rows_of(fields, task, int(count)) for task in tasks]
    misfits = _episodes(fields, env)
    short = [_first(one, STEP_ROWS) for one in drawn]
    best = None
    for mode in modes:
        seen = reasons.Seen.of(env if mode == modes[0] else make_env(mode), short)
        if best is None or seen.typical() < best[1].typical():
            best = mode, seen
        if best[1].typical() <= EQUAL:
            break
    mode, stepped = best
    relabelled = reasons.relabelled(env, drawn)
    report = {
        "rows": max(len(one.rows.reward) for one in drawn),
        "rows_stepped": max(len(one.rows.reward) for one in short),
        "physics": mode if env.replay is not None else None,
        "transition_error": _rounded(stepped.transitions),
        "reward_error": _rounded(stepped.rewards if relabelled is None else relabelled.rewards),
        "reward_correlation": _rounded((relabelled or stepped).correlations),
    }
    told = {misfit.task for misfit in misfits}
    rounding = reasons.rounding(stepped, relabelled, np.random.default_rng(samples.SEED))
    different = EQUAL if env.system is None else DIFFERENT  # there is no other engine of a point
    rounding = np.minimum(rounding, COARSE)  # coarser numbers could tell nothing: refused
    limits = reasons.Limits(EQUAL + rounding, different, CLOSE + rounding[1], rounding.any())
    found = reasons.of_tasks(stepped, relabelled, limits)
    misfits += [Misfit(*one) for one in found if one[0] not in told]
    misfits += _shown(fields, env, {misfit.task for misfit in misfits})
    worst = sorted(misfits, key=lambda misfit: -misfit.size)
    return report | {"misfits": [{"task": one.task, "text": one.text} for one in worst]}


def _first(sample, count):
    """Returns a Sample of the first rows, `count` at most: they are in random order."""
    return jax.tree.map(lambda leaf: leaf[:count], sample)


def _rounded(values):
    """Returns numbers with four digits for JSON; None for those that are not known."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _episodes(fields, env):
    """Returns Misfits of whole episodes: their lengths, starts and continuity."""
    low, high = _starts(env)
    misfits = []
    for task in range(len(fields["mask"])):
        places = tuple(samples.episodes_of(fields, task).T)
        one = {name: np.asarray(values[task][places]) for name, values in fields.items()}
        for check in (_length, _jumps, _start, _glued):
            text, size = check(one, env, low, high, samples.lengths(fields, task))
            if text:
                misfits.append(Misfit(task, text, 1000.0 + size))
                break
    return misfits


def resets(env: Env) -> Float[HostArray, "N obs"]:
    """Returns the observations of RESETS resets in the first task: starts know no task."""
    keys = jax.random.split(rng.key(0), RESETS)
    task = jax.tree.map(lambda leaf: leaf[0], env.tasks)
    return np.asarray(_observed(env.reset)(task, keys))


@functools.lru_cache(maxsize=8)
def _observed(reset):
    """Returns a compiled function (task, keys [N]) -> obs [N, obs]."""
    return jax.jit(lambda task, keys: jax.vmap(lambda key: reset(task, key)[1])(keys))


def _starts(env):
    """Returns (low, high) of each number of an observation after a reset, with a margin."""
    obs = resets(env)
    margin = 0.5 * (obs.max(0) - obs.min(0)) + 1e-3 * (1.0 + np.abs(obs).max(0))
    return obs.min(0) - margin, obs.max(0) + margin


def _shown(fields, env, told):
    """Returns Misfits of tasks whose context_reward is not what the Env shows of their reward.

    Args: told, tasks that have a misfit already.
    """
    misfits = []
    for task in sorted(set(range(len(fields["mask"]))) - told):
        places = tuple(samples.episodes_of(fields, task).T)
        names = ("reward", "context_reward", "mask")
        reward, stored, mask = (np.asarray(fields[name][task][places]) for name in names)
        shown = reward if env.context_reward is None else np.asarray(env.context_reward(reward))
        gap = (np.abs(stored - shown) * mask / (1.0 + np.abs(shown))).max()
        if gap > SEEN_ROUNDING:
            text = f"its context_reward is not what {env.name} shows of its reward"
            misfits.append(Misfit(task, f"{text} (off by up to {gap:.3g} of 1 + its size)", 1.0))
    return misfits


def _length(one, env, low, high, lengths):
    """Episodes are shorter than the horizon though nothing ends them."""
    if env.ends_early:
        count = np.maximum(one["mask"].sum(-1).astype(int), 1)
        ended = np.take_along_axis(one["terminal"], count[:, None] - 1, 1)[:, 0] > 0
        cut = ((count < env.horizon) & ~ended)[:-1]  # the last one may have been cut off
        if not len(cut) or cut.mean() <= ODD_EPISODES:
            return "", 0.0
        text = f"{cut.mean():.0%} of its episodes end before the horizon of {env.horizon}"
        return f"{text} without a true end", 10.0
    if lengths.max() >= env.horizon:
        return "", 0.0
    return (
        f"its longest episode has {lengths.max()} steps, and nothing but the horizon of "
        f"{env.horizon} ends one"
    ), 10.0


def _jumps(one, env, low, high, lengths):
    """Rows are not in time order, or several episodes lie in one."""
    follows = one["mask"][:, 1:] > 0
    after, before = one["obs"][:, 1:], one["next_obs"][:, :-1]
    moves = np.abs(one["next_obs"] - one["obs"])[one["mask"] > 0].mean(0) + 1e-6
    jumps = (np.abs(after - before) > moves + 1e-3 * np.abs(after)).any(-1) & follows
    share = jumps.any(-1).mean()
    if share <= ODD_EPISODES:
        return "", 0.0
    at = int(np.argmax(jumps.sum(0))) + 1
    return (
        f"{100 * share:.0f}% of its episodes jump (mostly before row {at}): rows are not in time "
        f"order, or episodes are shorter than the horizon of {env.horizon} steps"
    ), 9.0


def _start(one, env, low, high, lengths):
    """Episodes begin where a reset does not put anything."""
    first = one["obs"][:, 0]
    outside = (first < low) | (first > high)
    share = outside.any(-1).mean()
    if share <= ODD_EPISODES:
        return "", 0.0
    at = int(outside.sum(0).argmax())
    worst = first[np.abs(first[:, at] - 0.5 * (low + high)[at]).argmax(), at]
    return (
        f"{100 * share:.0f}% of its episodes begin where no reset does (obs[{at}] = {worst:.3g}, "
        f"expected {low[at]:.3g} to {high[at]:.3g}): other starts, or longer episodes cut up"
    ), 8.0


def _glued(one, env, low, high, lengths):
    """Episodes go on where the one before has stopped."""
    last = (one["mask"] > 0).sum(-1) - 1
    ends = np.take_along_axis(one["next_obs"], last[:, None, None], 1)[:-1, 0]
    varied = (high - low) > 0.01
    if len(ends) < 2 or not varied.any():
        return "", 0.0
    same = (np.abs(ends - one["obs"][1:, 0]) <= 1e-3 * (high - low))[:, varied].all(-1)
    if same.mean() <= ODD_EPISODES:
        return "", 0.0
    return (
        f"{100 * same.mean():.0f}% of its episodes begin where the one before ended: longer "
        f"episodes cut into pieces of {env.horizon} steps"
    ), 8.0
