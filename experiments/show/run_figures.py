"""Figures of a page that shows one run or several: seeds, returns by episode, curves side by side.

Runs are called rows here; a panel's name is "<task set> tasks, <protocol>".
"""

import math
from typing import NamedTuple

import numpy as np

from gentle_jax import statistics
from gentle_jax.protocols import base

from . import figures, tables

COLUMNS = 3  # of panels
EPISODES_SPENT = "episodes spent in the task before"


class Row(NamedTuple):
    """A run, or a grid point of one."""

    name: str
    returns: dict  # the arrays of its returns.npz
    costs: dict  # those of its costs.npz, {} of a run that has none
    part: slice = slice(None)  # its place on the axis of seeds


def panels_of(rows, task_sets=tables.TASK_SETS):
    """Returns {panel name: key of the arrays} of all that some row has."""
    blocks = [block for row in rows for block in tables.blocks(row.returns)]
    return {f"{t} tasks, {p}": key for key, t, p in dict.fromkeys(blocks) if t in task_sets}


def having(rows, key):
    """Returns [(number, row)] of the rows with these returns: a row has one colour everywhere."""
    return [(i, row) for i, row in enumerate(rows) if key in row.returns]


def colour(index):
    """Returns the colour of a row."""
    return figures.PALETTE[index % len(figures.PALETTE)]


def layout(panels, wide, high):
    """Returns (shape, size) of a figure of panels, each of that size in inches.

    A column for each protocol where there is room.
    """
    protocols = len({key.partition("/")[2] for key in panels.values()})
    columns = min(protocols, COLUMNS)
    lines = math.ceil(len(panels) / columns)
    return (lines, columns), (max(wide * columns, 6.0), high * lines + 1.2)


def with_legend(size, names):
    """Returns the size of a figure that has room for a legend beside it."""
    wide = 0.8 + figures.LABEL_WIDTH * max(map(len, names))
    return size[0] + wide, max(size[1], 1.0 + figures.LINE_HEIGHT * len(names))


def finish(figure, axes, count):
    """Hides the panels that nothing was drawn in, and adds one legend for the others."""
    entries = {}
    for i, axis in enumerate(axes.flat):
        axis.set_axis_on() if i < count else axis.set_axis_off()
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if len(entries) > 1:
        figure.legend(entries.values(), entries, loc="outside right upper")


def seeds(folder, rows, metric, title=""):
    """Draws every seed's return of the last checkpoint: a dot each, the mean and its interval."""
    panels, lost = panels_of(rows), set()
    shape, size = layout(panels, 3.6, 0.9 + 0.34 * len(rows))
    size = (size[0] + figures.LABEL_WIDTH * max(len(row.name) for row in rows), size[1])
    # a panel of its own scale: returns of protocols differ by far
    with figures.canvas(folder, "seeds", size, title, shape) as (figure, axes, caption):
        for axis, (name, key) in zip(axes.flat, panels.items(), strict=False):
            for i, row in having(rows, key):
                last = np.asarray(row.returns[key], np.float64)[-1, row.part]
                values = base.METRICS[metric](last).mean(-1)
                lost |= {(row.name, seed) for seed in np.flatnonzero(~np.isfinite(values))}
                values = values[np.isfinite(values)]
                axis.scatter(values, np.full(len(values), i), s=26, color=colour(i), alpha=0.55)
                if len(values) > 1:
                    axis.plot(statistics.bootstrap_ci(values, 2_000), (i, i), color="black", lw=1.5)
                    axis.plot(values.mean(), i, "D", color="black", ms=5)
            first = axis in axes[:, 0]
            axis.set_yticks(range(len(rows)), [row.name if first else "" for row in rows])
            axis.set(title=name, xlabel="return per episode", ylim=(len(rows) - 0.5, -0.5))
            axis.grid(alpha=0.25, axis="x")
        finish(figure, axes, len(panels))
        caption(
            f"One dot per seed: {tables.EPISODES.get(metric, metric)}, averaged over tasks; "
            f"diamond and line: mean and 95% bootstrap interval."
        )
        tell_few(caption, rows)
        tell_lost(caption, lost)
    return figures.written(folder, "seeds")


def tell_lost(caption, lost):
    """Adds to a caption how many runs it leaves out. Args: lost, {(row, number of the run)}."""
    if lost:
        caption(f"Without {len(lost)} run(s) that diverged; tables have them as nan.")


def tell_few(caption, rows):
    """Adds to a caption that some rows have few seeds, whose interval says little."""
    counts = [
        len(np.asarray(row.returns[key])[0, row.part])
        for row in rows
        for key, *_ in tables.blocks(row.returns)
    ]
    if any(1 < count < tables.FEW for count in counts):
        caption(f"Some means are of {tables.FEW_WORDS}.")


def over_spent(row, key):
    """Returns (spent [level], scores [level, seed]): the mean return of the episodes begun then.

    spent, how many episodes were spent in a task before. Slots in which a task had no episode do
    not count; a seed none of whose tasks had one is NaN.
    """
    last = np.asarray(row.returns[key], np.float64)[-1, row.part]  # [seed, task, slot]
    stored = row.costs.get(f"{key}/episodes")
    slots = np.arange(last.shape[-1]) if stored is None else np.asarray(stored)[-1, row.part]
    spent = np.broadcast_to(slots, last.shape)
    levels = np.unique(spent[np.isfinite(last)])
    scores = np.full((len(levels), len(last)), np.nan)
    for i, level in enumerate(levels):
        here = np.isfinite(last) & (spent == level)
        for seed in np.flatnonzero(here.any((1, 2))):
            scores[i, seed] = last[seed][here[seed]].mean()
    return levels, scores


def by_episode(folder, rows, title=""):
    """Draws the return of each episode of a protocol against the episodes spent before it.

    Only protocols of several episodes; returns no path where there is none.
    """
    panels = {
        name: key
        for name, key in panels_of(rows).items()
        if any(np.shape(row.returns.get(key, [0]))[-1] > 1 for row in rows)
    }
    if not panels:
        return []
    early, lost = False, set()
    shape, size = layout(panels, 4.0, 2.8)
    size = with_legend(size, [row.name for row in rows])
    with figures.canvas(folder, "by_episode", size, title, shape) as (figure, axes, caption):
        for axis, (name, key) in zip(axes.flat, panels.items(), strict=False):
            for i, row in having(rows, key):
                spent, scores = over_spent(row, key)
                figures.interval_band(axis, spent, scores, colour(i), row.name)
                ends = np.asarray(row.returns[key])[-1, row.part][..., [0, -1]]
                gone = np.flatnonzero(~np.isfinite(ends).all((1, 2)))
                lost |= {(row.name, seed) for seed in gone}
                kept = np.delete(np.asarray(row.returns[key])[-1, row.part], gone, 0)
                early |= bool(np.isnan(kept).any())
            axis.set(title=name, xlabel=EPISODES_SPENT, ylabel="return of the episode")
            axis.grid(alpha=0.25)
        finish(figure, axes, len(panels))
        caption("Mean over seeds and tasks at the last checkpoint; band: 95% bootstrap interval.")
        if early:
            caption("Episodes end early: later points are of the tasks that had so many.")
        tell_few(caption, rows)
        tell_lost(caption, lost)
    return figures.written(folder, "by_episode")


def curves(folder, rows, metric, title=""):
    """Draws the return over training of several rows in the same panels."""
    panels, lost = panels_of(rows), set()
    shape, size = layout(panels, 4.0, 2.8)
    size = with_legend(size, [row.name for row in rows])
    with figures.canvas(folder, "curves", size, title, shape) as (figure, axes, caption):
        for axis, (name, key) in zip(axes.flat, panels.items(), strict=False):
            for i, row in having(rows, key):
                every = np.asarray(row.returns[key], np.float64)[:, row.part]
                scores = base.METRICS[metric](every).mean(-1)
                lost |= {(row.name, seed) for seed in np.flatnonzero(~np.isfinite(scores[-1]))}
                steps = np.asarray(row.returns["eval_steps"])
                figures.interval_band(axis, steps, scores, colour(i), row.name)
                figures.steps_axis(axis, steps)
            axis.set(title=name, ylabel="return per episode")
            axis.grid(alpha=0.25)
        finish(figure, axes, len(panels))
        caption(
            f"{tables.EPISODES.get(metric, metric).capitalize()}, averaged over tasks; band: 95% "
            f"bootstrap interval over seeds."
        )
        tell_few(caption, rows)
        tell_lost(caption, lost)
    return figures.written(folder, "curves")


def along(folder, name, rows, axis, metric, title=""):
    """Draws the last checkpoint's return over what rows are along; returns no path without rows.

    Args: rows, of whose names `axis`, a comparison.Axis, tells curve and value; others are left
    out. Test tasks are solid, training tasks dotted.
    """
    rows = {row.name: row for row in rows if row.name in axis.at and row.returns}
    if not rows:
        return []
    values = list(dict.fromkeys(value for _, value in axis.at.values()))
    names = list(dict.fromkeys(curve for curve, _ in axis.at.values()))
    blocks = dict.fromkeys(block for row in rows.values() for block in tables.blocks(row.returns))
    protocols = list(dict.fromkeys(protocol for *_, protocol in blocks))
    shape, size = layout({p: f"/{p}" for p in protocols}, 4.2, 3.2)
    with figures.canvas(folder, name, size, title, shape) as (figure, axes, caption):
        for panel, protocol in zip(axes.flat, protocols, strict=False):
            for i, curve in enumerate(names):
                for task_set, style in (("test", "o-"), ("train", "o:")):
                    key = f"{task_set}/{protocol}"
                    own = [(value, rows[row]) for row, (c, value) in axis.at.items()
                           if c == curve and row in rows and key in rows[row].returns]  # fmt: skip
                    seeds = [np.asarray(row.returns[key], np.float64)[-1] for _, row in own]
                    seeds = [base.METRICS[metric](one).mean(-1) for one in seeds]
                    if own:
                        at = [values.index(value) for value, _ in own]
                        mean = [one.mean() for one in seeds]
                        ends = np.array([statistics.bootstrap_ci(one, 2_000) for one in seeds]).T
                        label = f"{curve}, {task_set} tasks"
                        panel.plot(at, mean, style, color=colour(i), ms=4, label=label)
                        panel.fill_between(at, *ends, color=colour(i), alpha=0.15, lw=0)
            panel.set_xticks(range(len(values)), values)
            panel.tick_params(axis="x", labelsize=8 if sum(map(len, values)) > 20 else None)
            panel.set(title=protocol, xlabel=axis.name, ylabel="return per episode")
            panel.grid(alpha=0.25)
        finish(figure, axes, len(protocols))
        caption(
            f"Mean over seeds at the last checkpoint: {tables.EPISODES.get(metric, metric)}, "
            f"averaged over tasks; band: 95% bootstrap interval."
        )
        tell_few(caption, rows.values())
    return figures.written(folder, name)
