"""What no data of an Env can be: of tasks that the source says are others, or above the optimum."""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from gentle_jax import errors, rng, task_tables
from gentle_jax.interop.table import Table, Tasks
from gentle_jax.types import Env, HostArray, ResetEnv

SLACK = 0.01  # share of the optimum that rounded rewards may lie above it
SHOWN = 4  # numbers of a task in a message, of more only the worst


def check(table: Table, folder: pathlib.Path, env: Env, accept: bool = False) -> str:
    """Raises UserError for data that the Env cannot have given; returns what was accepted, or "".

    Args: folder, of the source; accept, whether the source may say that its tasks are others.
    """
    accepted = ""
    if table.tasks is not None:
        try:
            check_tasks(table.tasks, table.task_rounding, folder, env)
        except errors.UserError as error:
            if not accept:
                raise
            accepted = str(error)
    check_optimum(table, folder, env)
    return accepted


def table_of(tasks: Tasks, split: tuple, where: pathlib.Path, env: Env) -> dict | None:
    """Returns what a source says of its tasks as a table of `task_tables`, None for too little.

    Args: split, train_ids and test_ids; where, the file that says so. Raises UserError for what
    cannot be tasks of the family.
    """
    if env.task_rules is None or not set(env.task_rules.leaves) <= set(tasks):
        return None
    leaves = {name: tasks[name] for name in env.task_rules.leaves}
    return task_tables.checked(leaves, *split, f"{where.name} of the source", env, where)


def check_tasks(tasks: Tasks, rounding: float, folder: pathlib.Path, env: Env) -> None:
    """Raises UserError, naming the worst task, unless the source's tasks are the Env's."""
    for name, stated in tasks.items():
        allowed = {**_leaves(env), "parameters": np.asarray(env.parameters, np.float64)}
        if name not in allowed:
            raise errors.unknown(f"task parameter of {folder}", name, allowed)
        expected = allowed[name]
        if stated.shape != expected.shape:
            raise errors.UserError(
                f"{folder} has {name} of shape {stated.shape}, {env.name} of suite {env.suite} has "
                f"{expected.shape}: pass the --env and --suite that the data are of"
            )
        gap = np.abs(stated - expected) / (1.0 + np.abs(expected))
        gap = np.nan_to_num(gap, nan=0.0).reshape(len(expected), -1)
        if gap.max() > rounding:
            task, at = np.unravel_index(gap.argmax(), gap.shape)
            few = gap.shape[1] <= SHOWN
            where, shown = (name, slice(None)) if few else (f"{name}[{at}]", slice(at, at + 1))
            had, wanted = (_text(values[task].reshape(-1)[shown]) for values in (stated, expected))
            raise errors.UserError(
                f"{folder} is of other tasks than {env.name} of suite {env.suite}: its task "
                f"{task} has {where} {had}, not {wanted}; pass the --env and --suite that the data "
                f"are of, or their tasks with --tasks=FILE"
            )


def _leaves(env):
    """Returns {name: [task, ...]} of what tasks differ in, by name where they have names."""
    tasks = env.tasks if isinstance(env.tasks, dict) else {}
    return {name: np.asarray(leaf, np.float64) for name, leaf in tasks.items()}


def _text(values):
    """Returns numbers as text."""
    return " ".join(f"{value:.4g}" for value in values)


def stated(values: Float[HostArray, "task P"], where: str, env: Env) -> Tasks:
    """Returns numbers without names as Tasks: P numbers are the leaves that have as many.

    Leaves are taken in the order of Env.tasks, neighbours together, where they differ between
    tasks; of several that fit, those that most tasks are near to. Args: where, what has the
    numbers, for the UserError that is raised if none fit.
    """
    leaves = {name: leaf.reshape(len(leaf), -1) for name, leaf in _leaves(env).items()}
    names, runs = list(leaves), [{"parameters": np.asarray(env.parameters, np.float64)}]
    for first in range(len(names)):
        for last in range(first, len(names)):
            runs.append({name: leaves[name] for name in names[first : last + 1]})
    differ = lambda tasks: any((leaf != leaf[:1]).any() for leaf in tasks.values())
    width = lambda tasks: sum(leaf.shape[1] for leaf in tasks.values())
    fitting = [tasks for tasks in runs if width(tasks) == values.shape[1] and differ(tasks)]
    if not fitting:
        widths = {name: leaf.shape[1] for name, leaf in leaves.items()}
        shown = ", ".join(f"{name} {count}" for name, count in widths.items())
        raise errors.UserError(
            f"{where} has {values.shape[1]} numbers of a task, {env.name} has {shown}: pass the "
            f"--env that the data are of"
        )
    gap = lambda tasks: np.nanmedian(np.abs(values - np.concatenate([*tasks.values()], 1)))
    nearest = min(reversed(fitting), key=gap)
    edges = np.cumsum([leaf.shape[1] for leaf in nearest.values()])[:-1]
    parts = dict(zip(nearest, np.split(values, edges, axis=1), strict=True))
    shapes = {"parameters": env.parameters.shape} | {k: v.shape for k, v in _leaves(env).items()}
    return {name: part.reshape(shapes[name]) for name, part in parts.items()}


def check_optimum(table: Table, folder: pathlib.Path, env: Env) -> None:
    """Raises UserError for an episode with a return above the known optimum of its task.

    The optimum is known for every episode only where all begin alike.
    """
    if env.optimal_return is None or start_of(env) is None:
        return
    lengths = table.fields["mask"].sum(-1).astype(int)  # [task, level, episode]
    returns = (table.fields["context_reward"] * table.fields["mask"]).sum(-1, dtype=np.float64)
    for length in np.unique(lengths[lengths > 0]).tolist():
        best = _optimum(env.optimal_return, length)[:, None, None]
        excess = np.where(lengths == length, returns - best - SLACK * (1.0 + np.abs(best)), 0.0)
        if excess.max() > 0:
            task, level, episode = np.unravel_index(excess.argmax(), excess.shape)
            raise errors.UserError(
                f"{folder} has an episode of task {task} (level {level}, episode {episode}) with "
                f"return {returns[task, level, episode]:.4g}, no agent gets above "
                f"{best[task, 0, 0]:.4g} there in {env.name} of suite {env.suite}: its rewards "
                f"are others, or it is of another environment"
            )


@functools.lru_cache(maxsize=64)  # it compiles a program for each length
def _optimum(optimal_return: Callable, length: int):
    """Returns the known optimum [task] of episodes of a length."""
    return np.asarray(optimal_return(1, length), np.float64)


def start_of(env: Env) -> Float[HostArray, " obs"] | None:
    """Returns the obs that every episode begins with, or None where they differ.

    Bodies begin with noise: no simulator is started to see that.
    """
    if env.system is not None:
        return None
    task = jax.tree.map(lambda leaf: np.asarray(leaf[0]), env.tasks)
    first, other = (_reset(env.reset, task, seed) for seed in (0, 1))
    return first if np.array_equal(first, other) else None


def _reset(reset: ResetEnv, task, seed):
    """Returns the obs of one reset."""
    return np.asarray(reset(task, rng.key(seed))[1])
