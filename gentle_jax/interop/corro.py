"""CORRO's and BOReL's folders: `[data/]seed_<k>_goal_<g1>_<g2>.../{obs,actions,...}.npy`.

Source: docs/methods/data.md, "CORRO and BOReL files". Rows are episodes one after the other, split
by `interop.episodes`; all of a task's rows are one level. Folders sorted by k are the tasks of the
environment in order. Numbers in a folder's name are what the source says of its task.
"""

import pathlib
import re

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import checks, episodes, table, unpickle
from gentle_jax.types import Env

OPTIONS = ("allow_pickle", "horizon", "rewards")
FOLDER = re.compile(r"seed_(\d+)_goal_(.+)")
FILES = {
    "obs": "obs", "action": "actions", "reward": "rewards", "next_obs": "next_obs",
    "terminal": "terminals",
}  # fmt: skip
GOAL_ROUNDING = 2e-3  # the folder names are rounded to three digits


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data."""
    folders = _find(folder, env)
    tasks = [_columns(below, options.allow_pickle) for below in folders]
    fields, notes, _ = episodes.fill(tasks, folders, options, env)
    notes += table.finish(fields, env, lambda task, *_: folders[task], options.rewards)
    source = {"format": "corro"}
    return table.Table(fields, [0], notes, source, {}, _goals(folders, env), GOAL_ROUNDING)


def _find(folder, env):
    """Returns the tasks' folders in the order of their numbers."""
    parent = folder / "data" if (folder / "data").is_dir() else folder
    folders = {}  # number -> folder
    for below in sorted(parent.iterdir()):
        match = FOLDER.fullmatch(below.name)
        if match and below.is_dir():
            number = int(match[1])
            if number in folders:
                raise errors.UserError(
                    f"{below} has the number of {folders[number].name}: expected one folder a task"
                )
            folders[number] = below
    needed = len(env.parameters)
    if len(folders) != needed:
        raise errors.UserError(
            f"{parent} has {len(folders)} folders seed_<k>_goal_..., {env.name} of suite "
            f"{env.suite} needs {needed}, one a task: pass another --from, --env or --suite"
        )
    return [folders[number] for number in sorted(folders)]


def _columns(folder, allow_pickle):
    """Returns {field: array [rows, ...]} of a task: as many rows in each."""
    columns = {}
    for name, file in FILES.items():
        path = folder / f"{file}.npy"
        columns[name] = episodes.numbers(unpickle.read_array(path, allow_pickle), name, path)
    sizes = {FILES[name]: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise errors.UserError(f"{folder} has files of different lengths {sizes}: restore them")
    return columns


def _goals(folders, env):
    """Returns the Tasks that the folders' names state; None where no name holds numbers."""
    goals = {}
    for task, folder in enumerate(folders):
        try:
            goals[task] = np.array(FOLDER.fullmatch(folder.name)[2].split("_"), np.float64)
        except ValueError:
            continue  # a name without numbers says nothing
    if not goals:
        return None
    widths = sorted({len(goal) for goal in goals.values()})
    if len(widths) > 1:
        raise errors.UserError(
            f"{folders[0].parent} has folders whose names hold {widths[0]} numbers and {widths[1]}:"
            f" expected as many of every task"
        )
    values = np.full((len(folders), widths[0]), np.nan)
    values[list(goals)] = list(goals.values())
    named = folders[next(iter(goals))]
    return checks.stated(values, f"the name of {named}", env)
