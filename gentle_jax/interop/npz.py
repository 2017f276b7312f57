"""Our own layout for rows of others: `task_<i>.npz`, one a task, and `tasks.npz`.

Source: docs/methods/data.md, "npz files", which says what each array is. `gentle_jax.write_dataset`
is the one below, so that nobody needs to write the files by hand.
"""

import io
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from gentle_jax import errors
from gentle_jax.interop import checks, episodes, table, unpickle
from gentle_jax.types import Env

OPTIONS = ("steps", "rewards")
FILE = re.compile(r"task_(0|[1-9]\d*)\.npz")
TASKS = "tasks.npz"
ROWS = ("obs", "action", "reward", "next_obs", "terminal")  # of every row
OPTIONAL = ("context_reward", "level")
NEEDED = (*ROWS, "length")
SPLIT = ("train_ids", "test_ids")  # in TASKS, beside the parameters
COUNTS = ("length", "level")  # whole numbers of every episode
DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def write_dataset(
    folder: str | pathlib.Path,
    rows: Sequence[Mapping[str, ArrayLike]],
    tasks: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Writes rows as files that `experiments.data import --format=npz` reads.

    Args: rows, of each task {"obs": [N, obs], "action": [N, action] in [-1, 1], "reward": [N]
    dense, "next_obs", "terminal": [N] 1 at true ends, "length": [E] rows of each episode}, and
    maybe "context_reward": [N], "level": [E] environment step of the behaviour agent; tasks, {leaf
    of Env.tasks: [task, ...]}, maybe with train_ids and test_ids. Raises UserError, before anything
    is written, for arrays that the layout does not have, and for a folder that holds such files.
    Layout: docs/methods/data.md, "npz files".
    """
    folder = pathlib.Path(folder)
    if folder.exists() and any(folder.glob("task*.npz")):
        raise errors.UserError(f"{folder} holds task files already: pass another folder")
    if not rows:
        raise errors.UserError("no rows are given: expected a dict of arrays for each task")
    files = {}
    for task, given in enumerate(rows):
        name = f"task_{task}.npz"
        arrays = {key: np.asarray(values) for key, values in given.items()}
        _check(arrays, folder / name)
        files[name] = arrays
    if tasks is not None:
        files[TASKS] = {name: np.asarray(values) for name, values in tasks.items()}
        _check_tasks(files[TASKS], folder / TASKS, len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in files.items():
        np.savez(folder / name, **arrays)


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data."""
    files = {int(m[1]): path for path in folder.iterdir() if (m := FILE.fullmatch(path.name))}
    paths = table.numbered(files, folder, "task_<i>.npz", env)
    tasks = [_open(path) for path in paths]
    for arrays, path in zip(tasks, paths, strict=True):
        _check(arrays, path)
        table.check_widths({name: arrays[name] for name in arrays if name not in COUNTS}, path, env)
    present = [step for arrays in tasks for step in _levels(arrays)]
    levels = table.choose_levels(present, options.steps, folder)
    counts = [[_levels(arrays).count(level) for level in levels] for arrays in tasks]
    fields = table.empty(env, len(levels), max(map(max, counts)))
    for task, (arrays, path) in enumerate(zip(tasks, paths, strict=True)):
        _fill(fields, task, arrays, levels, path, env)
    rewards = _rewards(tasks, folder, options)
    totals = [sum(count) for count in counts]
    some = f"{min(totals)} to {max(totals)} a task"
    notes = [f"{sum(totals)} episodes of {len(tasks)} tasks, {some}"]
    notes += table.short_note(fields, env)
    notes += table.finish(fields, env, lambda task, *_: paths[task], rewards)
    source = {"format": "npz", "steps": levels}
    return table.Table(fields, levels, notes, source, {}, _stated(folder / TASKS, env))


def tasks_of(folder: pathlib.Path, env: Env, options: table.Options) -> dict | None:
    """Returns the table of the tasks in `tasks.npz`; without ids the split is the Env's.

    None without the file, or where it does not hold all that tasks are made of.
    """
    del options
    path = folder / TASKS
    if not path.exists():
        return None
    stored = _open(path)
    split = [stored.pop(name, getattr(env, name)) for name in SPLIT]
    return checks.table_of(stored, tuple(split), path, env)


def _stated(path, env):
    """Returns the Tasks of a file, None without it; raises UserError for another split."""
    if not path.exists():
        return None
    stored = _open(path)
    _check_tasks(stored, path, len(env.parameters))
    for name in SPLIT:
        ids, expected = stored.pop(name, None), getattr(env, name)
        if ids is not None and sorted(ids.tolist()) != sorted(expected.tolist()):
            raise errors.UserError(
                f"{path} has other {name} than {env.name} of suite {env.suite}: pass the --env and "
                f"--suite that the data are of, or leave {name} out"
            )
    return stored


def _open(path):
    """Returns the arrays of a file, {name: array}."""
    with unpickle.reading(path, ".npz file", DAMAGED):
        file = io.BytesIO(path.read_bytes())  # a damaged zip may name places outside of its file
        if file.read(2) != b"PK":  # numpy would take any other file for a pickle
            raise ValueError("no zip")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files}


def _check(arrays, path):
    """Raises UserError unless the arrays of a task are those of the layout, of fitting lengths."""
    unknown = sorted(set(arrays) - {*NEEDED, *OPTIONAL})
    if unknown:
        raise errors.unknown(f"array of {path}", unknown[0], (*NEEDED, *OPTIONAL))
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise errors.UserError(f"{path} has no {missing[0]}: expected {', '.join(NEEDED)}")
    for name in arrays:
        if name not in COUNTS:
            arrays[name] = episodes.numbers(arrays[name], name, path)
        elif arrays[name].dtype.kind not in "iu" or arrays[name].ndim != 1:
            raise errors.UserError(
                f"{path} has {name} of shape {arrays[name].shape} and type {arrays[name].dtype}: "
                f"expected whole numbers, one an episode"
            )
    sizes = {name: len(values) for name, values in arrays.items()}
    total, length = sizes["reward"], arrays["length"]
    wrong = [name for name in sizes if name not in COUNTS and sizes[name] != total]
    if wrong:
        raise errors.UserError(
            f"{path} has {sizes[wrong[0]]} rows of {wrong[0]} and {total} of reward: expected as "
            f"many of each"
        )
    if not len(length) or length.min() < 1 or int(length.sum(dtype=object)) != total:
        raise errors.UserError(
            f"{path} has {len(length)} episodes with {length.sum()} rows in its length, and "
            f"{total} rows: expected the rows of each episode, 1 or more"
        )
    if "level" in arrays and (len(arrays["level"]) != len(length) or arrays["level"].min() < 0):
        raise errors.UserError(
            f"{path} has {len(arrays['level'])} numbers in its level and {len(length)} episodes: "
            f"expected the environment step of each"
        )


def _check_tasks(arrays, path, count):
    """Raises UserError unless every array has finite numbers of `count` tasks."""
    for name, values in arrays.items():
        if name in SPLIT:
            if values.dtype.kind not in "iu" or values.ndim != 1:
                raise errors.UserError(f"{path} has {name} that are not the numbers of tasks")
            continue
        if values.dtype.kind not in "biuf" or values.ndim == 0 or len(values) != count:
            raise errors.UserError(
                f"{path} has {name} of shape {values.shape} and type {values.dtype}: expected "
                f"numbers of {count} tasks"
            )
        if not np.isfinite(values).all():
            raise errors.UserError(f"{path} has NaN or infinite values in {name}: mend the file")


def _levels(arrays):
    """Returns the level of every episode as ints; 0 where none is said."""
    return arrays.get("level", np.zeros(len(arrays["length"]), int)).tolist()


def _fill(fields, task, arrays, levels, path, env):
    """Writes the episodes of a task, in the order of the file within a level."""
    used = dict.fromkeys(levels, 0)
    ends = np.cumsum(arrays["length"].astype(np.int64))
    for level, end, length in zip(_levels(arrays), ends, arrays["length"], strict=True):
        if level in used:
            span = slice(end - int(length), end)
            columns = {name: arrays[name][span] for name in arrays if name not in COUNTS}
            table.put(fields, (task, levels.index(level), used[level]), columns, path, env)
            used[level] += 1


def _rewards(tasks, folder, options):
    """Returns what the rewards are, as `table.finish` takes it."""
    stored = ["context_reward" in arrays for arrays in tasks]
    if any(stored) != all(stored):
        raise errors.UserError(
            f"{folder} has context_reward of some tasks only (not of task {stored.index(False)}): "
            f"store it for all or for none"
        )
    if any(stored) and options.rewards != "dense":
        raise errors.UserError(
            f"--rewards={options.rewards}: {folder} has context_reward; leave the flag out"
        )
    return "stored" if any(stored) else options.rewards
