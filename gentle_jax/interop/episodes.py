"""Rows in the order of time become episodes, for formats that store no time limits.

An episode ends where next_obs is not the next row's obs, and after an end flag. Where neither is in
a task's rows, or leaves a stretch that is longer than an episode can be, it also ends before a row
that begins where every episode does, if the Env has one such place.
"""

import pathlib
from typing import Any

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import checks, table
from gentle_jax.storage import Fields
from gentle_jax.types import Env

Rows = dict[str, np.ndarray]  # {field: [rows, ...]} of obs, action, reward, next_obs, terminal
VECTORS = ("obs", "action", "next_obs")


def numbers(values: Any, name: str, path: pathlib.Path) -> np.ndarray:
    """Returns a column as float32 [rows], or [rows, width] for VECTORS.

    Columns of one number may be [rows, 1]. Raises UserError, naming the file, for anything else.
    """
    vector = name in VECTORS
    if not isinstance(values, np.ndarray):
        raise errors.UserError(
            f"{path} has {name} of type {type(values).__name__}: expected an array of numbers"
        )
    if not vector and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind not in "biuf" or values.ndim != 1 + vector or not len(values):
        shape = "(rows, width)" if vector else "(rows,)"
        raise errors.UserError(
            f"{path} has {name} of shape {values.shape} and type {values.dtype}: expected numbers "
            f"{shape}"
        )
    if name == "terminal" and not np.isin(values, (0, 1)).all():
        raise errors.UserError(f"{path} has end flags other than 0 and 1 in {name}: mend the file")
    with np.errstate(over="ignore", invalid="ignore"):  # `table.finish` names what is not finite
        return values.astype(np.float32)


def fill(
    tasks: list[Rows], paths: list[pathlib.Path], options: table.Options, env: Env
) -> tuple[Fields, list[str], list[int]]:
    """Returns (fields, notes, rows of a level) of every task's rows.

    Args: paths, of each task's rows; options, whose `horizon` all episodes must have, but those
    that an end flag closes and a task's last one, and whose `levels` equal parts a task's episodes
    are. Raises UserError for rows that cannot be split.
    """
    if options.horizon > env.horizon:
        raise errors.UserError(
            f"--horizon={options.horizon}: episodes of {env.name} of suite {env.suite} have at "
            f"most {env.horizon} steps; pass the --env and --suite that the data are of"
        )
    limit, start = options.horizon or env.horizon, checks.start_of(env)
    edges = []
    for rows, path in zip(tasks, paths, strict=True):
        table.check_widths(rows, path, env)
        edges.append(_split(rows, limit, start, path))
        if options.horizon:
            _check_lengths(rows, edges[-1], options.horizon, path, env)
    counts = [len(each) - 1 for each in edges]
    if not 1 <= options.levels <= min(counts):
        raise errors.UserError(
            f"--levels={options.levels}: expected 1 to {min(counts)}, the fewest episodes of a task"
        )
    parts = [np.array_split(np.arange(count), options.levels) for count in counts]
    fields = table.empty(env, options.levels, max(len(part[0]) for part in parts))
    for task, (rows, path) in enumerate(zip(tasks, paths, strict=True)):
        for level, part in enumerate(parts[task]):
            for slot, episode in enumerate(part):
                span = slice(*edges[task][episode : episode + 2])
                columns = {name: values[span] for name, values in rows.items()}
                table.put(fields, (task, level, slot), columns, path, env)
                length = len(columns["reward"])
                if env.ends_early and episode < counts[task] - 1 and length < limit:
                    fields["terminal"][task, level, slot, length - 1] = 1.0  # another one follows
    if not env.ends_early:  # a flag on the last row only says that time was up
        fields["terminal"][:] = 0.0
    some = f"{min(counts)} to {max(counts)} a task"
    notes = [f"{sum(counts)} episodes of {len(tasks)} tasks, {some}"]
    longest = max(each[-1] for each in edges)
    steps = [int((level + 1) * longest // options.levels) for level in range(options.levels)]
    return fields, notes + table.short_note(fields, env), steps


def _split(rows, limit, start, path):
    """Returns the rows where episodes begin, and their number [episodes + 1]."""
    before, after = rows["next_obs"][:-1], rows["obs"][1:]
    apart = _apart(before, after)
    if limit > 2 and apart.sum() > len(apart) / 2:
        raise errors.UserError(
            f"{path} has {len(apart) + 1} rows that do not follow one another: next_obs is not the "
            f"next row's obs in {int(apart.sum())} of them; restore the order of time"
        )
    jumps = apart | (rows["terminal"][:-1] != 0)
    edges = _edges(jumps)
    if start is not None:
        at_start = ~_apart(rows["obs"], start)
        lengths = np.diff(edges)
        unclear = np.repeat(lengths > limit, lengths)[1:] | (not jumps.any())
        edges = _edges(jumps | (at_start[1:] & ~at_start[:-1] & unclear))
    lengths = np.diff(edges)
    if lengths.max() > limit:
        first = edges[lengths.argmax()]
        raise errors.UserError(
            f"{path} has {lengths.max()} rows from row {first} on that follow one another, an "
            f"episode has at most {limit}: where its episodes end cannot be seen, or it is of "
            f"another --env, --suite or --horizon"
        )
    return edges


def _apart(before, after):
    """Returns [rows]: whether observations differ by more than rounding."""
    with np.errstate(invalid="ignore"):  # what is not finite is apart from all, and told later
        near = np.abs(before - after) <= table.STEP_ROUNDING * (1.0 + np.abs(after))
    return ~near.all(-1)


def _edges(ends):
    """Returns where stretches begin, and the number of rows. Args: ends, [rows - 1]."""
    return np.concatenate([[0], np.flatnonzero(ends) + 1, [len(ends) + 1]])


def _check_lengths(rows, edges, horizon, path, env):
    """Raises UserError for an episode that neither the horizon nor an early end explains."""
    lengths = np.diff(edges)[:-1]
    flagged = rows["terminal"][edges[1:-1] - 1] != 0
    odd = (lengths != horizon) & ~(flagged | env.ends_early)
    if odd.any():
        first = int(odd.argmax())
        raise errors.UserError(
            f"{path} has an episode of {lengths[first]} rows from row {edges[first]} on, "
            f"--horizon={horizon} says {horizon}: pass the horizon of the data"
        )
