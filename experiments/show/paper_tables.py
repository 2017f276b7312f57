"""The papers' own results, as stored in `experiments/papers/*.csv`.

`papers.csv` says which tables a suite's runs are compared with, the first one that holds a cell
wins, and which episodes their numbers are of. A table whose rows vary the context data is not among
them: such a cell is looked up by its columns (`match`).
"""

import csv
import functools
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / "papers"
KINDS = {"ci95_bootstrap": "ci95", "std": "std"}


def rows(name):
    """Returns the rows of a file of `experiments/papers`, as dicts."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def papers():
    """Returns {suite: (metric, names of tables)}."""
    return {row["suite"]: (row["metric"], tuple(row["tables"].split())) for row in rows("papers")}


@functools.cache
def cells(tables):
    """Returns {(env, algorithm, protocol, task_set): cell} of some tables, by their names."""
    numbers = {}
    for row in (row for table in tables for row in rows(table)):
        key = (row["env"], row["algorithm"], row["protocol"], row["task_set"])
        numbers.setdefault(key, cell(row))
    return numbers


def cell(row):
    """Returns the numbers of a row of a file."""
    return {
        "mean": float(row["mean"]),
        "spread": float(row["spread"]),
        "kind": KINDS[row["spread_kind"]],
        "num_seeds": int(row["num_seeds"]),
    }


def match(table, columns):
    """Returns the cell of the first row of a file with these {column: value}, or None."""
    fits = (row for row in rows(table) if all(row[name] == columns[name] for name in columns))
    return next(map(cell, fits), None)


def lookup(suite, env, algorithm, protocol, task_set, metric=None):
    """Returns the paper's cell {"mean", "spread", "kind", "num_seeds"}, or None where it has none.

    Args: algorithm, also one of an algorithm's `VARIANTS`, or None, which is none of the paper's;
    metric, of the episodes that the number must be of.
    """
    if suite not in papers():
        return None
    native, tables = papers()[suite]
    cell = cells(tables).get((env, algorithm, protocol, task_set))
    return dict(cell) if cell and metric in (None, native) else None
