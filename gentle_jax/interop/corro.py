"""CORRO's and BOReL's folders: `[data/]seed_<k>_goal_<g1>_<g2>.../{obs,actions,...}.npy`.

Source: docs/methods/data.md, "CORRO and BOReL files". Rows are whole episodes of a fixed length,
one after the other; all of a task's rows are one level. Folders sorted by k are the tasks of the
environment in order. Where a folder's name holds as many numbers as the environment has task
parameters, the two are compared.
"""

import pathlib
import re

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import table, unpickle
from gentle_jax.types import Env

OPTIONS = ("allow_pickle",)
FOLDER = re.compile(r"seed_(\d+)_goal_(.+)")
FILES = {
    "obs": "obs", "action": "actions", "reward": "rewards", "next_obs": "next_obs",
    "terminal": "terminals",
}  # fmt: skip
VECTORS = ("obs", "action", "next_obs")
GOAL_ROUNDING = 2e-3  # the folder names are rounded to three digits


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data."""
    folders = _find(folder, env)
    tasks = [_columns(below, env, options.allow_pickle) for below in folders]
    counts = [len(columns["reward"]) // env.horizon for columns in tasks]
    fields = table.empty(env, 1, max(counts))
    for task, columns in enumerate(tasks):
        for episode in range(counts[task]):
            rows = slice(episode * env.horizon, (episode + 1) * env.horizon)
            one = {name: values[rows] for name, values in columns.items()}
            table.put(fields, (task, 0, episode), one, folders[task], env)
    if not env.ends_early:  # a flag on the last row only says that time was up
        fields["terminal"][:] = 0.0
    notes = [f"{sum(counts)} episodes of {len(tasks)} tasks, {min(counts)} to {max(counts)} a task"]
    notes += _other_goals(folders, env)
    notes += table.finish(fields, env, lambda task, *_: folders[task])
    return table.Table(fields, [0], notes, {"format": "corro"}, {})


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


def _columns(folder, env, allow_pickle):
    """Returns {field: array [rows, ...]} of a task: as many rows in each, whole episodes."""
    columns = {}
    for name, file in FILES.items():
        values = unpickle.read_array(folder / f"{file}.npy", allow_pickle)
        if name not in VECTORS and values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.dtype.kind not in "biuf" or values.ndim != 1 + (name in VECTORS):
            raise errors.UserError(
                f"{folder / file}.npy has shape {values.shape} of {values.dtype}: expected numbers "
                f"(rows, {'width' if name in VECTORS else 1})"
            )
        columns[name] = values
    sizes = {FILES[name]: len(values) for name, values in columns.items()}
    rows = sizes["obs"]
    if len(set(sizes.values())) > 1:
        raise errors.UserError(f"{folder} has files of different lengths {sizes}: restore them")
    if rows == 0 or rows % env.horizon:
        raise errors.UserError(
            f"{folder} has {rows} rows, not whole episodes of {env.horizon} steps, the horizon of "
            f"{env.name}: pass the --env and --suite that the data are of"
        )
    return columns


def _other_goals(folders, env):
    """Returns notes for folders whose names hold other task parameters than the Env's."""
    notes = []
    for task, folder in enumerate(folders):
        try:
            goal = np.array(FOLDER.fullmatch(folder.name)[2].split("_"), np.float64)
        except ValueError:
            continue  # a name without numbers says nothing
        parameters = np.asarray(env.parameters[task], np.float64).reshape(-1)
        if goal.shape == parameters.shape and np.abs(goal - parameters).max() > GOAL_ROUNDING:
            named = " ".join(f"{value:.3f}" for value in parameters)
            notes.append(
                f"{folder.name} names another task than task {task} of {env.name} ({named}): "
                f"agents are tested on the environment's own"
            )
    return table.limited(notes)
