"""The papers' own results, as stored in `experiments/papers/*.csv`."""

import csv
import functools
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / "papers"
# The first table that holds a cell wins. GENTLE's Table 3 is left out: its rows vary the context
# data, which is not part of a cell's key here.
TABLES = {
    "ctmrl": ("ctmrl_table1", "ctmrl_table2", "ctmrl_table3"),
    "gentle": ("gentle_table1_given_context", "gentle_table1_one_shot", "gentle_table2"),
}
PAPER_OF_SUITE = {"ctmrl": "ctmrl", "ctmrl_b": "ctmrl", "gentle": "gentle"}
METRIC = {"ctmrl": "final", "gentle": "all"}  # which episodes each paper's numbers are of
KINDS = {"ci95_bootstrap": "ci95", "std": "std"}


@functools.cache
def cells(paper):
    """Returns {(env, algorithm, protocol, task_set): cell} of all tables of `paper`."""
    found = {}
    for table in TABLES[paper]:
        with open(FOLDER / f"{table}.csv", newline="") as file:
            for row in csv.DictReader(file):
                key = (row["env"], row["algorithm"], row["protocol"], row["task_set"])
                cell = {
                    "mean": float(row["mean"]),
                    "spread": float(row["spread"]),
                    "kind": KINDS[row["spread_kind"]],
                }
                found.setdefault(key, cell)
    return found


def lookup(suite, env, algorithm, protocol, task_set, metric=None):
    """Returns the paper's cell {"mean", "spread", "kind"}, or None where it has none.

    `algorithm` may be an ablation, e.g. "ctmrl_no_kmeans", "ctmrl_codes_8", "gentle_no_relabel".
    None is none of the paper's. With `metric`, a number of other episodes than the paper's own has
    no counterpart there.
    """
    paper = PAPER_OF_SUITE.get(suite)
    if paper is None or metric not in (None, METRIC[paper]):
        return None
    cell = cells(paper).get((env, algorithm, protocol, task_set))
    return dict(cell) if cell else None
