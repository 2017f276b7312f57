"""The FOCAL family's folders: `goal_idx<i>/trj_evalsample<n>_step<S>.npy`, one episode a file.

Source: docs/methods/data.md, "FOCAL family files". A file is an object array [T, 4] with the
columns obs, action, reward, next_obs; i is the task, n the episode, S the environment step of the
behaviour level. No column says where an episode ended. One that stops before the horizon has a true
end if the environment can end early, and was cut short if it cannot; at the horizon only time was
up. In the releases the last row of every file ends the Bellman target:
`train.timeout_is_terminal`.
"""

import pathlib
import re

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import table, unpickle
from gentle_jax.types import Env

OPTIONS = ("steps", "episodes", "allow_pickle", "rewards")
FOLDER = re.compile(r"goal_idx(0|[1-9]\d*)")
FILES = {"sampled": "trj_evalsample<n>_step<S>.npy", "deterministic": "trj_eval<n>_step<S>.npy"}
COLUMNS = ("obs", "action", "reward", "next_obs")


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of a folder; raises UserError for what cannot be an Env's data.

    A file that is missing for one task and level but there for another is a gap: it is named in
    the notes and masked in the arrays.
    """
    if options.episodes not in FILES:
        raise errors.unknown("--episodes", options.episodes, FILES)
    files = _find(folder, env, FILES[options.episodes])
    levels = table.choose_levels([step for _, step, _ in files], options.steps, folder)
    files = {slot: path for slot, path in files.items() if slot[1] in levels}
    numbers = sorted({number for *_, number in files})
    gaps = _gaps(files, folder, env, levels, numbers)
    fields = table.empty(env, len(levels), len(numbers))
    paths = {}
    for (task, step, number), path in sorted(files.items()):
        slot = (task, levels.index(step), numbers.index(number))
        paths[slot] = path
        table.put(fields, slot, _columns(path, options.allow_pickle), path, env)
    _mark_ends(fields, env)
    odd = table.finish(fields, env, lambda *slot: paths[slot], options.rewards)
    wanted = len(env.parameters) * len(levels) * len(numbers)
    notes = [f"{len(files)} of {wanted} files, {len(levels)} levels, {len(numbers)} episodes each"]
    missing_numbers = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing_numbers:
        notes.append(f"no task has episodes {', '.join(map(str, missing_numbers[:20]))}")
    notes += table.short_note(fields, env)
    source = {"format": "focal", "steps": levels, "episodes": options.episodes}
    return table.Table(fields, levels, notes + gaps + odd, source, {})


def _find(folder, env, names):
    """Returns {(task, step, number): path}; raises UserError unless every task has some.

    Args: names, of FILES.
    """
    pattern = re.compile(re.escape(names).replace("<n>", r"(\d+)").replace("<S>", r"(\d+)"))
    num_tasks = len(env.parameters)
    files, seen = {}, set()
    for below in sorted(folder.iterdir()):
        match = FOLDER.fullmatch(below.name)
        if match is None or not below.is_dir():
            continue
        task = int(match[1])
        if task >= num_tasks:
            raise errors.UserError(
                f"{below} is of task {task}, {env.name} of suite {env.suite} has tasks 0 to "
                f"{num_tasks - 1}: pass the --env and --suite that the data are of"
            )
        for path in below.iterdir():
            name = pattern.fullmatch(path.name)
            if name:
                seen.add(task)
                files[task, int(name[2]), int(name[1])] = path
    missing = sorted(set(range(num_tasks)) - seen)
    if missing:
        raise errors.UserError(
            f"{folder} has no {names} of {len(missing)} of {num_tasks} tasks "
            f"(goal_idx{missing[0]} first): pass another --from, --env or --suite"
        )
    return files


def _gaps(files, folder, env, levels, numbers):
    """Returns a line for each gap; raises UserError if a task has no episode of a level."""
    gaps = []
    for task in range(len(env.parameters)):
        for step in levels:
            absent = [number for number in numbers if (task, step, number) not in files]
            if len(absent) == len(numbers):
                raise errors.UserError(
                    f"{folder / f'goal_idx{task}'} has no episode of step {step}, other tasks do: "
                    f"restore them, or choose levels that all tasks have with --steps"
                )
            gaps += [f"missing: goal_idx{task}, step {step}, episode {n}" for n in absent]
    return table.limited(gaps)


def _columns(path, allow_pickle):
    """Returns {field: array [T, ...]} of a file."""
    rows = unpickle.read_array(path, allow_pickle)
    if rows.ndim != 2 or rows.shape[1] != len(COLUMNS) or not len(rows):
        raise errors.UserError(
            f"{path} has shape {rows.shape}: expected rows of obs, action, reward, next_obs (T, 4)"
        )
    try:
        columns = {
            name: np.stack([np.asarray(cell, np.float64) for cell in rows[:, i]])
            for i, name in enumerate(COLUMNS)
        }
    except (TypeError, ValueError):
        raise errors.UserError(
            f"{path} has cells that are not numbers, or rows of different widths: mend the file"
        ) from None
    if columns["reward"].size == len(rows):  # scalars, or arrays of one number
        columns["reward"] = columns["reward"].reshape(len(rows))
    return columns


def _mark_ends(fields, env):
    """Sets terminal where an episode ended before the horizon."""
    lengths = fields["mask"].sum(-1).astype(int)
    slot = np.nonzero((lengths > 0) & (lengths < env.horizon))
    if env.ends_early:
        fields["terminal"][(*slot, lengths[slot] - 1)] = 1.0
