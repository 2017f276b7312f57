"""SPC's folders: one `.pth` a task, a float32 tensor [rows, obs + action + 1 + obs + 1].

Source: docs/methods/data.md, "SPC files". Names are alike but for their last number, which is the
task. Rows are episodes one after the other, split by `interop.episodes`; they are one level.
"""

import pathlib
import re

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import episodes, table, tensors
from gentle_jax.types import Env

OPTIONS = ("horizon", "rewards")
FILE = re.compile(r"(.*?)(\d+)(\D*)\.pth")


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data."""
    paths = _find(folder, env)
    tasks = [_columns(path, env) for path in paths]
    fields, notes, _ = episodes.fill(tasks, paths, options, env)
    notes += table.finish(fields, env, lambda task, *_: paths[task], options.rewards)
    return table.Table(fields, [0], notes, {"format": "spc"}, {})


def _find(folder, env):
    """Returns the tasks' files in order; raises UserError for names that do not say it."""
    paths, around = {}, {}
    for path in sorted(folder.glob("*.pth")):
        match = FILE.fullmatch(path.name)
        if match is None:
            raise errors.UserError(f"{path} has no number in its name: expected that of its task")
        around[match[1], match[3]] = path
        if len(around) > 1:
            first, other = (each.name for each in list(around.values())[:2])
            raise errors.UserError(
                f"{folder} has {first} and {other}: expected names that differ in their last "
                f"number only, which is the task"
            )
        if int(match[2]) in paths:
            raise errors.UserError(
                f"{path} has the number of {paths[int(match[2])].name}: expected one file a task"
            )
        paths[int(match[2])] = path
    return table.numbered(paths, folder, "<...><i>.pth", env)


def _columns(path, env):
    """Returns {field: array [rows, ...]} of a task."""
    rows = tensors.read(path)
    widths = [env.obs_dim, env.action_dim, 1, env.obs_dim, 1]
    if rows.ndim != 2 or rows.shape[1] != sum(widths):
        raise errors.UserError(
            f"{path} has shape {rows.shape}: expected rows of obs, action, reward, next_obs, "
            f"terminal, {' + '.join(map(str, widths))} numbers in {env.name}"
        )
    parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    names = ("obs", "action", "reward", "next_obs", "terminal")
    return {
        name: episodes.numbers(part, name, path) for name, part in zip(names, parts, strict=True)
    }
