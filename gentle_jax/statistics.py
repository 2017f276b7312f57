"""Statistics of tables and figures: intervals over seeds, interquartile means, summaries.

A NaN (a seed that diverged) is never dropped: it makes every number that it enters NaN.
"""

import numpy as np
from jaxtyping import Float
from scipy import stats

from gentle_jax.types import HostArray

TRIM = 0.25  # the interquartile mean drops the lowest and the highest quarter
LEVEL = 0.95
CHUNK = 2_000_000  # numbers drawn at once: bounds the memory of many tasks

# lists of numbers are taken too
PerSeed = Float[HostArray, " S"] | list
OtherPerSeed = Float[HostArray, " S2"] | list
PerTask = Float[HostArray, " T"] | list
Scores = Float[HostArray, "S T"] | list
OtherScores = Float[HostArray, "S2 T"] | list


def _interval(samples):
    """Returns (lo, hi), the central 95% of bootstrap samples."""
    tail = 100.0 * (1.0 - LEVEL) / 2.0
    low, high = np.percentile(samples, [tail, 100.0 - tail])
    return float(low), float(high)


def _resamples(scores, num_resamples, seed, statistic):
    """Returns [num_resamples]: `statistic` of scores [S, T], runs resampled within each task."""
    num_seeds, num_tasks = scores.shape
    random = np.random.default_rng(seed)
    at_once = max(1, CHUNK // scores.size)
    parts = []
    for first in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - first)
        runs = random.integers(num_seeds, size=(count, num_seeds, num_tasks))
        parts.append(statistic(scores[runs, np.arange(num_tasks)].reshape(count, -1)))
    return np.concatenate(parts)


def bootstrap_ci(
    per_seed: PerSeed, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Returns (lo, hi), the 95% percentile bootstrap interval of the mean over seeds.

    CTMRL's convention. One seed, or equal seeds, give (value, value).
    """
    per_seed = np.asarray(per_seed, np.float64)
    if not np.isfinite(per_seed).all():
        return float("nan"), float("nan")
    # also spares equal values the rounding of their mean
    if np.ptp(per_seed) == 0:
        return float(per_seed[0]), float(per_seed[0])
    mean = lambda samples: samples.mean(-1)
    return _interval(_resamples(per_seed[:, None], num_resamples, seed, mean))


def _trimmed(samples):
    """Returns the 25% trimmed mean over the last axis."""
    return stats.trim_mean(samples, TRIM, axis=-1)


def iqm(scores: Scores) -> float:
    """Returns the interquartile mean, pooled over seeds and tasks."""
    scores = np.asarray(scores, np.float64)
    # trimming would hide a diverged run
    if not np.isfinite(scores).all():
        return float("nan")
    return float(_trimmed(scores.ravel()))


def iqm_ci(scores: Scores, num_resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Returns (lo, hi), the 95% bootstrap interval of `iqm`, stratified as in rliable.

    Runs are resampled within each task, independently of the other tasks.
    """
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        return float("nan"), float("nan")
    if len(scores) == 1:
        return iqm(scores), iqm(scores)
    return _interval(_resamples(scores, num_resamples, seed, _trimmed))


def normalized(returns: Scores, random: PerTask, reference: PerTask) -> float:
    """Returns the mean over seeds and tasks of (return - random) / (reference - random).

    0 is the random policy, 1 the reference. NaN where the two coincide or one is unknown.
    """
    return float(normalized_per_seed(returns, random, reference).mean())


def normalized_per_seed(
    returns: Scores, random: PerTask, reference: PerTask
) -> Float[HostArray, " S"]:
    """Returns `normalized` of every seed."""
    gap = np.asarray(reference, np.float64) - np.asarray(random, np.float64)
    gap = np.where(gap == 0, np.nan, gap)
    return ((np.asarray(returns, np.float64) - random) / gap).mean(1)


def summarize(
    returns: Scores, random: PerTask, reference: PerTask
) -> dict[str, float | list[float]]:
    """Returns the table's numbers as plain floats, ready for JSON.

    `std` is over seed means with ddof=1 (GENTLE's "mean +- std over seeds"; 0.0 for one seed);
    `ci95` over seed means too; `iqm` is over seed x task.
    """
    returns = np.asarray(returns, np.float64)
    per_seed = returns.mean(1)
    return {
        "mean": float(per_seed.mean()),
        "std": float(per_seed.std(ddof=1)) if len(per_seed) > 1 else 0.0,
        "ci95": list(bootstrap_ci(per_seed)),
        "iqm": iqm(returns),
        "iqm_ci95": list(iqm_ci(returns)),
        "normalized": normalized(returns, random, reference),
        "normalized_ci95": list(bootstrap_ci(normalized_per_seed(returns, random, reference))),
        "per_seed": [float(value) for value in per_seed],
    }


def improvement(ours: Scores, theirs: OtherScores) -> float:
    """Returns the probability that a run of `ours` is above one of `theirs` in a task.

    Mean over tasks; equal values count half. Source: rliable (Agarwal et al. 2021), "probability
    of improvement". Args: scores [S, T] of the same tasks; numbers of seeds may differ.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("nan")
    return float(_above(ours, theirs).mean())


def improvement_samples(
    ours: Scores, theirs: OtherScores, num_resamples: int = 20_000, seed: int = 0
) -> Float[HostArray, " R"]:
    """Returns bootstrap samples of `improvement`, whole runs resampled.

    rliable draws runs anew in each task. A run of ours is one agent that meets all tasks, so its
    returns depend on each other: drawn apart, two equal methods differed "for sure" in a third of
    the cases.
    """
    above, random, parts = _above(ours, theirs), np.random.default_rng(seed), []
    at_once = max(1, CHUNK // above.size)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        rows, columns = (random.integers(count, size=(size, count)) for count in above.shape)
        parts.append(above[rows[:, :, None], columns[:, None]].mean((1, 2)))
    return np.concatenate(parts)


def improvement_ci(ours: Scores, theirs: OtherScores) -> tuple[float, float]:
    """Returns (lo, hi), the 95% bootstrap interval of `improvement`."""
    return _interval(improvement_samples(ours, theirs))


def _above(ours, theirs):
    """Returns [S, S']: the share of tasks in which a run is above another, equal ones half."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return ((np.sign(ours[:, None] - theirs[None]) + 1.0) / 2.0).mean(-1)


def welch(ours: PerSeed, theirs: OtherPerSeed) -> tuple[float, tuple[float, float], float]:
    """Returns (difference of means, its 95 % interval, p of "there is none"): Welch's t-test.

    Runs that are all equal have no variance: then p is 0 or 1. One run has none to know: p is NaN.
    """
    sides = [np.asarray(side, np.float64) for side in (ours, theirs)]
    value = float(sides[0].mean() - sides[1].mean())
    if min(map(len, sides)) < 2:
        return value, (float("nan"), float("nan")), float("nan")
    if all(np.ptp(side) == 0 for side in sides):  # their mean may be rounded
        value = float(sides[0][0] - sides[1][0])
        return value, (value, value), float(value == 0)
    errors = [side.var(ddof=1) / len(side) for side in sides]  # squared
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True)
    )
    error = float(np.sqrt(sum(errors)))
    half = float(stats.t.ppf((1.0 + LEVEL) / 2.0, freedom)) * error
    p = float(2.0 * stats.t.sf(abs(value) / error, freedom))
    return value, (value - half, value + half), p


def holm(p_values: Float[HostArray, " N"] | list, level: float = 1.0 - LEVEL) -> list[bool]:
    """Returns which of some hypotheses are refused, all of them right with 1 - `level` (Holm)."""
    order = np.argsort(p_values)
    refused = [False] * len(order)
    for rank, index in enumerate(order):
        if not p_values[index] <= level / (len(order) - rank):  # NaN is no reason
            break
        refused[index] = True
    return refused
