"""Meta-DT's folders: `dataset_task_<i>.pkl`, a dict of arrays, and `task_goals.pkl`.

Source: docs/methods/data.md, "Meta-DT files". A task's rows are those of an agent's whole training,
in order; `--levels=K` cuts its episodes into K equal parts. No time limit is stored: `--horizon`
says it, and `interop.episodes` holds it against the rows.
"""

import pathlib
import re

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import checks, episodes, table, unpickle
from gentle_jax.types import Env

OPTIONS = ("allow_pickle", "horizon", "levels", "rewards")
FILE = re.compile(r"dataset_task_(0|[1-9]\d*)\.pkl")
GOALS = "task_goals.pkl"
KEYS = {
    "obs": "observations", "action": "actions", "reward": "rewards",
    "next_obs": "next_observations", "terminal": "terminals",
}  # fmt: skip


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data."""
    files = {int(m[1]): path for path in folder.iterdir() if (m := FILE.fullmatch(path.name))}
    paths = table.numbered(files, folder, "dataset_task_<i>.pkl", env)
    tasks = [_columns(path, options.allow_pickle) for path in paths]
    fields, notes, steps = episodes.fill(tasks, paths, options, env)
    notes += table.finish(fields, env, lambda task, *_: paths[task], options.rewards)
    goals = _goals(folder / GOALS, env, options.allow_pickle)
    if goals is None:
        notes.append(f"no {GOALS}: tasks are taken for those of {env.name}, suite {env.suite}")
    source = {"format": "metadt", "levels": options.levels}
    return table.Table(fields, steps, notes, source, {}, goals)


def tasks_of(folder: pathlib.Path, env: Env, options: table.Options) -> dict | None:
    """Returns the table of the tasks in `task_goals.pkl`, with the Env's split; None without it."""
    goals = _goals(folder / GOALS, env, options.allow_pickle)
    split = env.train_ids, env.test_ids
    return None if goals is None else checks.table_of(goals, split, folder / GOALS, env)


def _columns(path, allow_pickle):
    """Returns {field: array [rows, ...]} of a task."""
    stored = unpickle.read_pickle(path, allow_pickle)
    if not isinstance(stored, dict):
        raise errors.UserError(
            f"{path} holds a {type(stored).__name__}: expected a dict of {', '.join(KEYS.values())}"
        )
    missing = [key for key in KEYS.values() if key not in stored]
    if missing:
        raise errors.UserError(f"{path} has no {missing[0]}: expected {', '.join(KEYS.values())}")
    columns = {name: episodes.numbers(stored[key], name, path) for name, key in KEYS.items()}
    sizes = {KEYS[name]: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise errors.UserError(f"{path} has arrays of different lengths {sizes}: restore it")
    return columns


def _goals(path, env, allow_pickle):
    """Returns the Tasks that a folder states, None without the file.

    They are an array [tasks, numbers], or a list of numbers, arrays, or dicts of one of these.
    """
    if not path.exists():
        return None
    stored, count = unpickle.read_pickle(path, allow_pickle), len(env.parameters)
    try:
        if isinstance(stored, list | tuple):
            stored = [[*each.values()] if isinstance(each, dict) else each for each in stored]
        values = np.asarray(stored, np.float64)
        if values.ndim == 0 or len(values) != count:
            raise ValueError("another number of tasks")
        values = values.reshape(count, -1)
        if not np.isfinite(values).all():
            raise ValueError("not finite")
    except (ValueError, TypeError, OverflowError):
        raise errors.UserError(
            f"{path} does not hold finite numbers of each of {count} tasks, which {env.name} of "
            f"suite {env.suite} has: restore it, pass the --env and --suite of the data, or their "
            f"tasks and split with --tasks=FILE"
        ) from None
    return checks.stated(values, str(path), env)
