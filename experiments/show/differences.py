"""Which rows of a table differ beyond chance, and which of them is above the other.

Welch's t-test of the runs' mean returns, corrected for the number of pairs (Holm). Five to eight
runs are too few for the percentile bootstrap: of eight equal methods with six runs each it called
some pair different in 15 to 35 % of simulated tables; this test in 5 % or less, also where runs
fail, are skewed, or spread more for one method than for another (`test_differences.py`).
"""

import itertools
from typing import NamedTuple

import numpy as np

from gentle_jax import statistics

from . import tables

HEAD = "- Beyond chance"
NOTE = (
    "Beyond chance: mean returns differ by Welch's t-test, corrected for the pairs of a line "
    "(Holm); in brackets, where known, the probability that a run is above one of the other row in "
    "the same task."
)
MOST = 40  # pairs of a line; of more, those of the best row alone


class Side(NamedTuple):
    """What is known of a row under one protocol, on one set of tasks."""

    per_seed: list  # mean returns of the runs
    suite: str
    task_set: str
    scores: np.ndarray | None = None  # [run, task], where they were kept


def side(summary, own, protocol, task_set):
    """Returns the Side of a summary, None without results. Args: own, its scores by name."""
    one = tables.entry(summary, protocol, task_set)
    scores = own.get(f"{task_set}/{protocol}")
    return one and Side(one["per_seed"], summary["suite"], task_set, scores)


def sides(chosen, own, protocol, task_set):
    """Returns {row: Side} of {row: summary}, without rows that lack results.

    Args: own, {row: {"<task set>/<protocol>": scores [S, T]}}, where they are known.
    """
    found = {row: side(s, own.get(row, {}), protocol, task_set) for row, s in chosen.items()}
    return {row: one for row, one in found.items() if one}


def is_pair(a, b):
    """Whether two Sides can be compared: finite, five runs or more, of the same tasks."""
    if a.scores is None or b.scores is None:
        same = a.task_set == "test"  # a row may have other training tasks
    else:
        same = a.scores.shape[1] == b.scores.shape[1]
    return same and a.suite == b.suite and comparable(a.per_seed, b.per_seed)


def comparable(a, b):
    """Whether the returns of two rows' runs are enough to compare: finite, of five runs or more."""
    return min(len(a), len(b)) >= tables.FEW and bool(np.isfinite([*a, *b]).all())


def tests(pairs):
    """Returns [(difference of means, its 95 % interval, whether it is beyond chance)].

    Args: pairs, [(returns of one row's runs, of another's)], all `comparable`: they are told
    together, and corrected for each other.
    """
    found = [statistics.welch(*pair) for pair in pairs]
    sure = statistics.holm([p for *_, p in found])
    return [(value, interval, s) for (value, interval, _), s in zip(found, sure, strict=True)]


def improvement(a, b):
    """Returns the probability that a run of a Side is above one of another's, None if unknown."""
    if a.scores is None or b.scores is None or a.scores.shape[1] != b.scores.shape[1]:
        return None
    return statistics.improvement(a.scores, b.scores)


def apart(known):
    """Returns ([(row above, row below)] beyond chance, number of pairs) of {row: Side}."""
    twos = [two for two in itertools.combinations(known, 2) if is_pair(*map(known.get, two))]
    found = tests([tuple(known[row].per_seed for row in two) for two in twos])
    kept = zip(twos, found, strict=True)
    return [two if value > 0 else two[::-1] for two, (value, _, sure) in kept if sure], len(twos)


def shared(chosen):
    """Returns the columns (protocol, "test") that all rows of {row: summary} have."""
    protocols = [summary["protocols"] for summary in chosen.values()]
    every = dict.fromkeys(itertools.chain(*protocols))
    return [(p, "test") for p in every if all(p in of for of in protocols)]


def sentences(columns, own, chosen):
    """Returns a sentence for each column: which pairs of rows differ beyond chance.

    Args: own, {row: {"<task set>/<protocol>": scores [S, T]}}, {} where they are not known; chosen,
    {row: summary}. Rows that are no pair (`is_pair`) are left out.
    """
    found = []
    for protocol, task_set in columns:
        known = sides(chosen, own, protocol, task_set)
        pairs, count = apart(known)
        if not count:
            continue
        below = {}
        for above, other in pairs:
            chance = improvement(known[above], known[other])
            told = "" if chance is None else f" ({chance:.2f})"
            below.setdefault(above, []).append(f"`{other}`{told}")
        order = sorted(below, key=lambda row: -np.mean(known[row].per_seed))
        shown = order[:1] if len(pairs) > MOST else order
        text = "; ".join(f"`{row}` above {', '.join(below[row])}" for row in shown) or "none"
        left = len(pairs) - sum(len(below[row]) for row in shown)
        text += f"; and {left} pairs of other rows" if left else ""
        found.append(
            f"{HEAD}, `{protocol}`, {task_set} tasks, {len(pairs)} of {count} pairs: {text}."
        )
    return found
