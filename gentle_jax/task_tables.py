"""Tables of tasks: parameters and split of a family, as data carry them and as files hold them.

A table is a JSON-able dict: `leaves` {name: [task][...]}, `train_ids`, `test_ids`, and `from`, a
text that says whose tasks they are. Files are `.npz` (an array for each leaf, the ids), or `.csv`
with a header: `set` (train, test, both) and a column for each number, `goal[0]`, `goal[1]`, ...
"""

import csv
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from gentle_jax import errors
from gentle_jax.config import ExperimentConfig
from gentle_jax.types import Env

SPLIT = ("train_ids", "test_ids")
SETS = {"train": (True, False), "test": (False, True), "both": (True, True)}
UNIT_ROUNDING = 1e-3


def of_env(env: Env) -> dict:
    """Returns the table of an Env's own tasks; raises UserError for a family that takes no other.

    Args: env, of the whole suite.
    """
    if env.task_rules is None:
        raise errors.UserError(
            f"the tasks of {env.name} cannot be given: it has those of its suite only; leave "
            f"--tasks out"
        )
    leaves = {name: _numbers(env.tasks[name]) for name in env.task_rules.leaves}
    return _table(leaves, env.train_ids, env.test_ids, f"suite {env.suite}")


def meta_of(config: ExperimentConfig) -> dict:
    """Returns what a dataset says of its tasks: where from, and the whole table if it was given.

    The suite's own tasks follow from the suite.
    """
    if config.tasks is None:
        return {"tasks_from": f"suite {config.run.suite}"}
    return {"tasks_from": config.tasks["from"], "task_table": config.tasks}


def same(one: dict, other: dict) -> bool:
    """Whether two tables hold the same tasks and split, wherever they are from."""
    return all(one[name] == other[name] for name in ("leaves", *SPLIT))


def read(path: pathlib.Path, env: Env, needed: Sequence[str] = SPLIT) -> dict:
    """Returns the table in a file; raises UserError for what cannot be tasks of the family.

    Args: env, of the whole suite: its family's names, shapes and ranges count; needed, which of
    SPLIT must have a task.
    """
    readers = {".npz": _read_npz, ".csv": _read_csv}
    of_env(env)  # refuses a family that takes none
    if path.suffix not in readers:
        raise errors.unknown("kind of file in --tasks", path.name, ["NAME.npz", "NAME.csv"])
    if not path.is_file():
        raise errors.UserError(
            f"--tasks={path} is no file: pass another one, or write the suite's own with "
            f"`{errors.command('data')} tasks --env={env.name} --suite={env.suite} --to={path}`"
        )
    try:
        columns = readers[path.suffix](path, env)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, csv.Error) as error:
        if isinstance(error, errors.UserError):
            raise
        raise errors.UserError(
            f"{path} cannot be read as {path.suffix[1:]} ({type(error).__name__}): write it again"
        ) from None
    ids = [columns.pop(name, None) for name in SPLIT]
    for name, each in zip(SPLIT, ids, strict=True):
        if each is None:
            raise errors.UserError(f"{path} has no {name}: add the ids of these tasks, from 0")
    return checked(columns, *ids, f"file {path.name}", env, path, needed)


def _read_npz(path, env):
    """Returns {name: array} of an .npz file."""
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _columns_of(env):
    """Returns {leaf: names of its columns in a csv file}."""
    columns = {}
    for name in env.task_rules.leaves:
        size = int(np.prod(env.tasks[name].shape[1:]))
        scalar = env.tasks[name].ndim == 1
        columns[name] = [name] if scalar else [f"{name}[{i}]" for i in range(size)]
    return columns


def _read_csv(path, env):
    """Returns {name: array} of a .csv file; raises UserError naming a column or a line."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets mark it
        lines = csv.DictReader(file, strict=True)
        rows, header = list(lines), lines.fieldnames or []
    wanted = _columns_of(env)
    known = ["set", *(column for columns in wanted.values() for column in columns)]
    for column in header:
        if column not in [*known, "task"]:
            raise errors.unknown(f"column in {path}", column, known)
        if header.count(column) > 1:
            raise errors.UserError(f"{path} has column {column} twice: keep one")
    for column in known:
        if column not in header:
            raise errors.UserError(f"{path} has no column {column}: expected {', '.join(known)}")
    sets = [row["set"] for row in rows]
    for number, (row, its_set) in enumerate(zip(rows, sets, strict=True), 2):
        if (
            None in row
            or None in row.values()
            or row.get("task", str(number - 2)) != str(number - 2)
        ):
            raise errors.UserError(
                f"{path} has line {number} out of place: expected task {number - 2} there, and as "
                f"many cells as in the header"
            )
        if its_set not in SETS:
            raise errors.unknown(f"set in line {number} of {path}", its_set, SETS)
        for column in known[1:]:
            try:
                float("?" if "_" in row[column] else row[column])  # 1_0 would be 10
            except ValueError:
                raise errors.UserError(
                    f"{path} has {row[column]!r} in line {number}, column {column}: expected a "
                    f"number"
                ) from None
    leaves = {}
    for name, columns in wanted.items():
        flat = np.array([[float(row[column]) for column in columns] for row in rows])
        leaves[name] = flat.reshape(len(rows), *env.tasks[name].shape[1:])
    for at, name in enumerate(SPLIT):
        leaves[name] = np.array([i for i, each in enumerate(sets) if SETS[each][at]], int)
    return leaves


def checked(
    leaves: Mapping[str, np.ndarray],
    train_ids: Sequence[int] | np.ndarray,
    test_ids: Sequence[int] | np.ndarray,
    source: str,
    env: Env,
    where: pathlib.Path | str,
    needed: Sequence[str] = SPLIT,
) -> dict:
    """Returns the table of these tasks; raises UserError for other names, shapes and ranges.

    Args: leaves, {name: array [task, ...]}; source, the table's `from`; where, named in errors;
    needed, which of SPLIT must have a task.
    """
    rules = of_env(env) and env.task_rules.leaves
    for name in leaves:
        if name not in rules:
            raise errors.unknown(f"task parameter in {where}", name, [*rules, *SPLIT])
    for name in rules:
        if name not in leaves:
            raise errors.UserError(f"{where} has no {name}: tasks of {env.name} are made of it")
    leaves = {name: np.asarray(leaves[name]) for name in rules}
    count = len(next(iter(leaves.values()))) if next(iter(leaves.values())).ndim else 0
    for name, values in leaves.items():
        wanted = (count, *env.tasks[name].shape[1:])
        if values.dtype.kind not in "iuf" or values.shape != wanted or not count:
            raise errors.UserError(
                f"{where} has {name} of shape {values.shape} of {values.dtype}: expected numbers "
                f"{('tasks', *wanted[1:])}, as many tasks as in the others, at least one"
            )
        _check_range(values, name, rules[name], where)
    for name, ids in zip(SPLIT, (train_ids, test_ids), strict=True):
        if name in needed or np.size(ids):
            _check_ids(np.asarray(ids), name, count, where)
    unused = sorted(set(range(count)) - {*map(int, train_ids), *map(int, test_ids)})
    if unused:
        raise errors.UserError(
            f"{where} has task {unused[0]} in neither train_ids nor test_ids: put it into one, or "
            f"leave the task out"
        )
    leaves = {name: _numbers(values) for name, values in leaves.items()}
    return _table(leaves, train_ids, test_ids, source)


def _check_range(values, name, rule, where):
    """Raises UserError for a number that a leaf may not hold."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    bad = ~np.isfinite(flat) | (flat < rule.low) | (flat > rule.high)
    if bad.any():
        task, at = np.argwhere(bad)[0].tolist()
        raise errors.UserError(
            f"{where} has {name} = {flat[task, at]:g} in task {task}: expected numbers from "
            f"{rule.low:g} to {rule.high:g}"
        )
    lengths = np.linalg.norm(flat, axis=1)
    if rule.unit and np.abs(lengths - 1.0).max() > UNIT_ROUNDING:
        task = int(np.abs(lengths - 1.0).argmax())
        raise errors.UserError(
            f"{where} has {name} of length {lengths[task]:g} in task {task}: expected length 1"
        )


def _check_ids(ids, name, count, where):
    """Raises UserError unless `ids` are some of the tasks, each once."""
    whole = ids.ndim == 1 and ids.dtype.kind in "iu"
    if not whole or not len(ids) or not set(ids.tolist()) <= set(range(count)):
        raise errors.UserError(
            f"{where} has {name} {ids.tolist()}: expected at least one of the tasks 0 to "
            f"{count - 1}"
        )
    if len(set(ids.tolist())) < len(ids):
        raise errors.UserError(f"{where} has a task twice in {name}: list it once")


def _numbers(values):
    """Returns float32 numbers as nested lists."""
    return np.asarray(values, np.float32).tolist()


def _table(leaves, train_ids, test_ids, source):
    ids = (sorted(int(i) for i in each) for each in (train_ids, test_ids))
    return {"leaves": leaves, **dict(zip(SPLIT, ids, strict=True)), "from": source}


def to_csv(table: dict, env: Env) -> str:
    """Returns a table as the text of a .csv file; numbers come back as the same float32."""
    columns = _columns_of(env)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "set", *(c for names in columns.values() for c in names)])
    flat = [np.asarray(table["leaves"][name], np.float32) for name in columns]
    for task in range(len(flat[0])):
        inside = tuple(task in table[name] for name in SPLIT)
        its_set = next(name for name, where in SETS.items() if where == inside)
        numbers = [str(value) for leaf in flat for value in leaf[task].reshape(-1)]
        writer.writerow([task, its_set, *numbers])
    return text.getvalue()


def write(path: pathlib.Path, table: dict, env: Env) -> None:
    """Writes a table as .npz or .csv; raises UserError for any other name."""
    if path.suffix == ".csv":
        path.write_text(to_csv(table, env), encoding="utf-8")
    elif path.suffix == ".npz":
        arrays = {name: np.asarray(leaf, np.float32) for name, leaf in table["leaves"].items()}
        np.savez(path, **arrays, **{name: np.array(table[name], int) for name in SPLIT})
    else:
        raise errors.unknown("kind of file in --to", path.name, ["NAME.npz", "NAME.csv"])
