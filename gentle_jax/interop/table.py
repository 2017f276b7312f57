"""What every importer returns, and the checks that all of them share.

A format's module defines `read(folder, env, options) -> Table` and `OPTIONS`, the names of the
Options that it uses. It fills the arrays of `empty` and hands them to `finish`. One that stores its
tasks also defines `tasks_of(folder, env, options)`: a table of `task_tables`, or None. `check` then
holds the Table against what the Env says of its data: `interop.checks`.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gentle_jax import errors, storage
from gentle_jax.storage import Fields
from gentle_jax.types import Env, HostArray

ACTION_ROUNDING = 1e-6  # actions this far outside [-1, 1] are clipped, further ones are refused
REWARD_ROUNDING = 1e-6  # as far may a reward lie above the largest there is
STEP_ROUNDING = 1e-5  # next_obs may differ from the next row's obs by this share
MAX_NAMED = 10  # lines of one kind before the rest is only counted

REWARDS = ("dense", "sparse")

# leaf of Env.tasks, or "parameters" for Env.parameters -> [task, ...]; NaN: not said of this task
Tasks = dict[str, Float[HostArray, "task ..."]]
PathOf = Callable[[int, int, int], Any]  # (task, level, episode) -> its file, to be named in errors


class Options(NamedTuple):
    """What a user may choose of a source; formats name those that they use in `OPTIONS`."""

    steps: tuple[int, ...] = ()  # the levels to read; () = all
    episodes: str = "sampled"  # or "deterministic"
    allow_pickle: bool = False  # whether array files may run code
    horizon: int = 0  # steps of the source's episodes; 0 = up to the Env's
    levels: int = 1  # parts of equal length that a task's rows are cut into
    rewards: str = "dense"  # or "sparse": the source has no others


class Table(NamedTuple):
    """Episodes of every task of an Env, and where they come from."""

    fields: Fields
    levels: list[int]  # the environment step of each behaviour level
    notes: list[str]  # lines for the user: gaps, and what was found odd
    source: dict  # JSON-able, becomes part of the dataset's identity
    known: dict  # entries of meta.json that the source knows itself, such as reference_return
    tasks: Tasks | None = None  # what the source says of its tasks; None: nothing
    task_rounding: float = 1e-5  # how exactly it says so


def empty(env: Env, num_levels: int, num_episodes: int) -> Fields:
    """Returns float32 zeros, so mask is 0 everywhere."""
    lead = (len(env.parameters), num_levels, num_episodes, env.horizon)
    return {name: np.zeros(s, np.float32) for name, s in storage.shapes_of(lead, env).items()}


def put(
    fields: Fields,
    slot: tuple[int, int, int],
    columns: dict[str, np.ndarray],
    path: pathlib.Path,
    env: Env,
) -> None:
    """Writes an episode at slot (task, level, episode), with its mask.

    Raises UserError, naming the file, for lengths or widths that the Env does not have; values are
    checked by `finish`, all at once. Args: columns, {field: [length, ...]}; path, of the episode.
    """
    length = len(columns["reward"])
    if not 1 <= length <= env.horizon:
        raise errors.UserError(
            f"{path} has {length} rows, an episode of {env.name} has 1 to {env.horizon}: is it of "
            f"another environment? Pass its --env and --suite"
        )
    check_widths(columns, path, env)
    for name, values in columns.items():
        with np.errstate(over="ignore", invalid="ignore"):  # `finish` names what is not finite
            fields[name][slot][:length] = values
    fields["mask"][slot][:length] = 1.0


def check_widths(columns: dict[str, np.ndarray], path: pathlib.Path, env: Env) -> None:
    """Raises UserError, naming the file, unless columns are as long as `reward` and fit the Env."""
    lead = (1, 1, 1, len(columns["reward"]))
    wanted = {name: shape[3:] for name, shape in storage.shapes_of(lead, env).items()}
    for name, values in columns.items():
        if values.shape != wanted[name]:
            raise errors.UserError(
                f"{path} has {name} of shape {values.shape}, {env.name} needs {wanted[name]}: is "
                f"it of another environment? Pass its --env and --suite"
            )


def finish(fields: Fields, env: Env, path_of: PathOf, rewards: str = "dense") -> list[str]:
    """Checks values, clips rounded actions and fills in context_reward; returns notes.

    Args: rewards, what the source's rewards are, of REWARDS, or "stored" where its context_reward
    is in `fields` already. Raises UserError, naming the file, for values that are not finite,
    actions outside [-1, 1], end flags within an episode, and dense rewards that no step can give.
    """
    _check_rewards(rewards, env)
    notes, late = [], 0
    for task in range(len(fields["mask"])):
        of_task = {name: values[task] for name, values in fields.items()}
        empty_levels = np.flatnonzero(of_task["mask"][..., 0].sum(-1) == 0)
        if len(empty_levels):
            raise errors.UserError(
                f"level {empty_levels[0]} of task {task} has no episode: expected at least one of "
                f"every task at every level; restore it, or leave the level out"
            )
        for name in ("obs", "action", "reward", "context_reward", "next_obs"):
            bad = ~np.isfinite(of_task[name])
            _refuse(bad, task, path_of, f"NaN or infinite values in {name}")
        action, reward = of_task["action"], of_task["reward"]
        beyond = np.abs(action) > 1.0 + ACTION_ROUNDING
        _refuse(beyond, task, path_of, "actions outside [-1, 1]; scale them to it", action)
        if rewards == "dense" and env.max_reward is not None:
            hint = "" if env.context_reward is None else ", or pass --rewards=sparse if they are"
            what = f"dense rewards above {env.max_reward:g}, which {env.name} does not give{hint}"
            _refuse(reward > env.max_reward + REWARD_ROUNDING, task, path_of, what, reward)
        np.clip(action, -1.0, 1.0, out=action)
        late += _check_ends(of_task, task, path_of, env)
        notes += _jumps(of_task, task, path_of)
    if late:
        notes.append(f"{late} end flags left out: {env.name} never ends early, so time was up")
    if rewards == "dense":
        fields["context_reward"][:] = context_reward(fields["reward"], env) * fields["mask"]
    elif rewards == "sparse":
        fields["context_reward"][:] = fields["reward"]
        notes.append("dense rewards are unknown: backbones learn from the sparse ones, too")
    return limited(notes)


def _check_ends(of_task, task, path_of, env):
    """Returns how many end flags of a task are taken out, as the Env never ends early.

    Raises UserError for flags on rows that are not the last of their episode.
    """
    terminal, there = of_task["terminal"], of_task["mask"] > 0
    last = there & (there.cumsum(-1) == there.sum(-1, keepdims=True))
    _refuse((terminal > 0) & ~last, task, path_of, "end flags within an episode")
    if env.ends_early:
        return 0
    late = int((terminal > 0).sum())
    terminal[:] = 0.0
    return late


def _check_rewards(rewards, env):
    """Raises UserError for rewards that are not of REWARDS, or that the Env does not have."""
    if rewards not in (*REWARDS, "stored"):
        raise errors.unknown("--rewards", rewards, REWARDS)
    if rewards == "sparse" and env.context_reward is None:
        raise errors.UserError(
            f"--rewards=sparse: {env.name} has dense rewards only; leave it out, or pass another "
            f"--env"
        )


def context_reward(reward: Float[HostArray, "*rows"], env: Env) -> Float[HostArray, "*rows"]:
    """Returns what contexts see of dense rewards, by the Env's rule."""
    return reward if env.context_reward is None else np.asarray(env.context_reward(reward))


def _refuse(bad, task, path_of, what, values=None):
    """Raises UserError for the first episode of bad [level, episode, step, ...] that has a True."""
    episodes = bad.reshape(*bad.shape[:2], -1).any(-1)
    if not episodes.any():
        return
    level, episode = np.argwhere(episodes)[0].tolist()
    worst = "" if values is None else f" (up to {np.abs(values[level, episode]).max():.6g})"
    raise errors.UserError(f"{path_of(task, level, episode)} has {what}{worst}: mend the file")


def _jumps(of_task, task, path_of):
    """Returns a note for each episode of a task where next_obs is not the next row's obs."""
    before, after = of_task["next_obs"][:, :, :-1], of_task["obs"][:, :, 1:]
    inside = of_task["mask"][:, :, 1:, None] > 0
    gap = np.where(inside, np.abs(before - after), 0.0)
    odd = gap > STEP_ROUNDING * (1.0 + np.abs(after))
    return [
        f"{path_of(task, level, episode)}: next_obs differs from the next row's obs by up to "
        f"{gap[level, episode].max():.3g}; kept as it is"
        for level, episode in np.argwhere(odd.any((-2, -1))).tolist()
    ]


def limited(lines: list[str]) -> list[str]:
    """Returns at most MAX_NAMED lines; the last one counts what was left out."""
    if len(lines) <= MAX_NAMED:
        return lines
    return [*lines[:MAX_NAMED], f"... and {len(lines) - MAX_NAMED} more like these"]


def numbered(
    paths: dict[int, pathlib.Path], folder: pathlib.Path, names: str, env: Env
) -> list[pathlib.Path]:
    """Returns the files of tasks 0, 1, ... in order; raises UserError unless these are all.

    Args: paths, by task; names, how such files are called.
    """
    count = len(env.parameters)
    if sorted(paths) != list(range(count)):
        first = min(set(range(count)) ^ set(paths))
        raise errors.UserError(
            f"{folder} has {len(paths)} files {names}, {env.name} of suite {env.suite} needs one "
            f"of each task 0 to {count - 1} ({first} first): pass another --from, --env or --suite"
        )
    return [paths[task] for task in range(count)]


def short_note(fields: Fields, env: Env) -> list[str]:
    """Returns a note that counts episodes of fewer steps than the horizon, if there are any."""
    lengths = fields["mask"].sum(-1)
    short = int(((lengths > 0) & (lengths < env.horizon)).sum())
    ends = "ended early" if env.ends_early else f"were cut short: {env.name} never ends early"
    return [f"{short} episodes of fewer than {env.horizon} steps {ends}"] if short else []


def choose_levels(
    present: Iterable[int], asked: tuple[int, ...], folder: pathlib.Path
) -> list[int]:
    """Returns the levels that are asked for, sorted, or all; raises UserError for absent ones."""
    present = sorted(set(present))
    unknown = [step for step in asked if step not in present]
    if unknown:
        raise errors.UserError(
            f"--steps={unknown[0]} is not in {folder}: it has {', '.join(map(str, present))}"
        )
    return sorted(set(asked)) or present
