"""Rows of a dataset that checks look at: a sample of every task, with their neighbours in time."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gentle_jax.storage import Fields
from gentle_jax.types import HostArray, Transition

EPISODES = 200  # of a task that are looked at for starts and jumps
SEED = 0


class Sample(NamedTuple):
    """Rows of one task, what came before them and the row after; NaN where there is none."""

    rows: Transition  # leaves [N, ...]
    before: Transition  # leaves [N, BEFORE, ...], the last one is the row before
    after: Transition
    step: Int[HostArray, " N"] | None = None  # where in its episode a row is


BEFORE = 8  # rows: what a row does not hold follows from them
EARLY = 24  # rows of a sample before its ends of episodes


def episodes_of(fields: Fields, task: int) -> Int[HostArray, "E 2"]:
    """Returns (level, episode) of at most EPISODES episodes of a task, in their order."""
    there = np.argwhere(np.asarray(fields["mask"][task][..., 0]) > 0)
    if len(there) <= EPISODES:
        return there
    return there[np.linspace(0, len(there) - 1, EPISODES).astype(int)]


def lengths(fields: Fields, task: int) -> Int[HostArray, " E"]:
    """Returns the lengths of a task's episodes that are there."""
    counts = np.asarray(fields["mask"][task]).sum(-1).astype(int).reshape(-1)
    return counts[counts > 0]


def rows_of(fields: Fields, task: int, count: int) -> Sample:
    """Returns a Sample of `count` rows of a task; rows come again where it has fewer.

    A tenth of them begin episodes, a tenth end them, others are uniform over all rows; all rows
    where there are no more. One size for all tasks: programs are compiled once.
    """
    random = np.random.default_rng([SEED, task])
    mask = np.asarray(fields["mask"][task]) > 0
    size = mask.sum(-1)
    pick = lambda places, n: places[random.permutation(len(places))[:n]]
    episodes, place = np.argwhere(size > 0), np.argwhere(mask)
    if len(place) > count:
        first, last = pick(episodes, count // 10), pick(episodes, count // 10)
        place = np.concatenate(
            [
                np.column_stack([first, np.zeros(len(first), int)]),
                np.column_stack([last, size[tuple(last.T)] - 1]),
                pick(place, count - len(first) - len(last)),
            ]
        )
        place = np.unique(place, axis=0)
    order = random.permutation(len(place))
    ends = place[order, 2] == size[tuple(place[order, :2].T)] - 1
    # ends after some others: whoever looks at the first rows only sees them, too
    order = np.concatenate([order[~ends][:EARLY], order[ends], order[~ends][EARLY:]])
    level, episode, step = place[np.resize(order, count)].T
    at = lambda shift: _at(fields, task, (level, episode, step + shift), size)
    earlier = level[:, None], episode[:, None], step[:, None] + np.arange(-BEFORE, 0)
    return Sample(at(0), _at(fields, task, earlier, size), at(1), step)


def _at(fields, task, place, size):
    """Returns rows at (level, episode, step), NaN where an episode has no such step."""
    level, episode, step = place
    there = (step >= 0) & (step < size[level, episode])
    inside = (level, episode, np.where(there, step, 0))

    def leaf(name):
        values = np.array(fields[name][task][inside], np.float32)
        values[~there] = np.nan
        return values

    return Transition(**{name: leaf(name) for name in Transition._fields})


def trimmed(squares: Float[HostArray, " N"], share: float = 0.95) -> float:
    """Returns the root of the mean of the smallest `share` of squares; NaN for none."""
    squares = np.sort(squares[np.isfinite(squares)].astype(np.float64))
    return (
        float(np.sqrt(squares[: max(int(share * len(squares)), 1)].mean()))
        if len(squares)
        else np.nan
    )
