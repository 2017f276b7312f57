"""Which rows of a table differ beyond chance, and which of them is above the other.

Welch's t-test of the runs' mean returns, corrected for the number of pairs (Holm). Five to eight
runs are too few for the percentile bootstrap: of eight equal methods with six runs each it called
some pair different in 15 to 35 % of simulated tables; this test in 5 % or less, also where runs
fail, are skewed, or spread more for one method than for another (`test_differences.py`).
"""

import itertools

import numpy as np

from gentle_jax import statistics

from . import tables

HEAD = "- Beyond chance"
NOTE = (
    "Beyond chance: mean returns differ by Welch's t-test, corrected for the pairs of a line "
    "(Holm); in brackets the probability that a run is above one of the other row in the same task."
)


def comparable(a, b):
    """Whether the returns of two rows' runs are enough to compare: finite, of five runs or more."""
    return min(len(a), len(b)) >= tables.FEW and bool(np.isfinite([*a, *b]).all())


def tests(pairs):
    """Returns [(difference of means, its 95 % interval, whether it is beyond chance)].

    Args: pairs, [(returns of one row's runs, of another's)]: all that are told together, they are
    corrected for each other. Those that are not `comparable` are never beyond chance.
    """
    found = [statistics.welch(*pair) for pair in pairs]
    known = [comparable(*pair) for pair in pairs]
    sure = statistics.holm([p if k else 1.0 for (*_, p), k in zip(found, known, strict=True)])
    return [(value, interval, s) for (value, interval, _), s in zip(found, sure, strict=True)]


def shared(chosen):
    """Returns the columns (protocol, "test") that all rows of {row: summary} have."""
    protocols = [summary["protocols"] for summary in chosen.values()]
    every = dict.fromkeys(itertools.chain(*protocols))
    return [(p, "test") for p in every if all(p in of for of in protocols)]


def sentences(columns, own, chosen):
    """Returns a sentence for each column: which pairs of rows differ beyond chance.

    Args: own, {row: {"<task set>/<protocol>": scores [S, T]}}, {} where they are not known; chosen,
    {row: summary}. Rows of different suites, or numbers of tasks, are no pairs: their tasks differ.
    """
    found = []
    for protocol, task_set in columns:
        runs = {row: tables.entry(s, protocol, task_set) for row, s in chosen.items()}
        runs = {row: one["per_seed"] for row, one in runs.items() if one}
        key = f"{task_set}/{protocol}"
        known = {row: own.get(row, {}).get(key) for row in runs}
        pairs = [
            (a, b)
            for a, b in itertools.combinations(runs, 2)
            if comparable(runs[a], runs[b])
            and chosen[a]["suite"] == chosen[b]["suite"]
            and same_tasks(known[a], known[b])
        ]
        if not pairs:
            continue
        below = {}
        for (a, b), (value, _, sure) in zip(
            pairs, tests([(runs[a], runs[b]) for a, b in pairs]), strict=True
        ):
            if sure:
                above, other = (a, b) if value > 0 else (b, a)
                chance = improvement(known[above], known[other])
                below.setdefault(above, []).append(f"`{other}`{chance}")
        order = sorted(below, key=lambda row: -np.mean(runs[row]))
        shown = "; ".join(f"`{row}` above {', '.join(below[row])}" for row in order) or "none"
        count = sum(map(len, below.values()))
        found.append(
            f"{HEAD}, `{protocol}`, {task_set} tasks, {count} of {len(pairs)} pairs: {shown}."
        )
    return found


def same_tasks(ours, theirs):
    """Whether scores [S, T] may be of the same tasks: of as many, or not known."""
    return ours is None or theirs is None or ours.shape[1] == theirs.shape[1]


def improvement(ours, theirs):
    """Returns ` (probability of improvement)` of scores [S, T], "" where they are not known."""
    if ours is None or theirs is None:
        return ""
    return f" ({statistics.improvement(ours, theirs):.2f})"
