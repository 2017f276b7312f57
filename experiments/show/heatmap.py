"""The figure of a grid: a line with intervals over one key, heat maps over two and more."""

import itertools
import math

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from . import figures

COLOURS = "viridis"  # even in lightness: readable without colour vision, and in grey
PANELS = 12  # of one figure; more go to further ones


def text(value):
    """Returns a swept value as text."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def number(value):
    """Returns a return as text."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def scale_of(means):
    """Returns the colour scale that all panels share."""
    known = means[np.isfinite(means)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    pad = 0.5 * (low == high)  # equal values: the middle of the scale
    return Normalize(low - pad, high + pad)


def draw(folder, axes, means, intervals, best=None, what="return", title="", notes=()):
    """Draws the means of a grid; returns the paths of the figures.

    Args: axes, [(name, values)]; means [n1, n2, ...], a length for each axis, NaN where a run
    diverged or did not run; intervals [n1, n2, ..., 2], NaN where there is none; best, the index
    of the cell to mark, or None; what, the name of the quantity; notes, sentences of the caption.
    The first axis is rows, the second columns, and every combination of the others a panel.
    """
    means, intervals = np.asarray(means, np.float64), np.asarray(intervals, np.float64)
    if len(axes) == 1:
        return line(folder, axes[0], means, intervals, best, what, title, notes)
    panels = list(itertools.product(*(range(len(values)) for _, values in axes[2:])))
    pages = [panels[i : i + PANELS] for i in range(0, len(panels), PANELS)]
    paths = []
    for count, page in enumerate(pages, 1):
        name = "heat_map" if len(pages) == 1 else f"heat_map_{count}"
        columns = min(len(page), len(axes[-1][1]) if len(axes) > 2 else 1, 4)
        rows = math.ceil(len(page) / columns)
        wide, high = (max(1.05 * len(axes[1][1]), 2.4) + 0.8, 0.7 * len(axes[0][1]) + 0.9)
        high += 0.2 * len(axes[2:])
        size = (max(wide * columns + 1.6, 6.0), high * rows + 1.6)
        with figures.canvas(folder, name, size, title, (rows, columns)) as (figure, grid, caption):
            colours = matplotlib.colormaps[COLOURS].with_extremes(bad="#e8e8e8")
            scale = matplotlib.cm.ScalarMappable(scale_of(means), colours)
            for axis in grid.flat[len(page) :]:
                axis.set_axis_off()
            for axis, rest in zip(grid.flat, page, strict=False):
                where = (slice(None), slice(None), *rest)
                mark = best[:2] if best is not None and tuple(best[2:]) == rest else None
                panel(axis, axes[:2], means[where], intervals[where], scale, mark)
                named = zip(axes[2:], rest, strict=True)
                lines = [f"{key}={text(values[i])}" for (key, values), i in named]
                axis.set_title("\n".join(lines), fontsize=10)
            figure.colorbar(scale, ax=grid, label=what, shrink=0.9)
            for note in notes:
                caption(note)
        paths += figures.written(folder, name)
    return paths


def panel(axis, axes, means, intervals, scale, mark):
    """Draws means [row, column] as a heat map with its numbers; mark, a cell to frame, or None."""
    axis.imshow(means, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="nearest")
    for (set_ticks, set_label), (name, values) in zip(
        ((axis.set_yticks, axis.set_ylabel), (axis.set_xticks, axis.set_xlabel)), axes, strict=True
    ):
        set_ticks(range(len(values)), [text(value) for value in values])
        set_label(name)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for (i, j), mean in np.ndenumerate(means):
        if means.size > figures.MAX_LABELLED:
            break
        ink, shown = "black", "-"
        if np.isfinite(mean):
            ink = "white" if np.dot(scale.to_rgba(mean)[:3], (0.299, 0.587, 0.114)) < 0.5 else ink
            shown = number(mean)
            if np.isfinite(intervals[i, j]).all():
                shown += f"\n[{number(intervals[i, j, 0])}, {number(intervals[i, j, 1])}]"
        axis.text(j, i, shown, ha="center", va="center", color=ink, fontsize=7.5)
    if mark is not None:
        box = {"fill": False, "edgecolor": "#D55E00", "lw": 3, "clip_on": False, "zorder": 3}
        axis.add_patch(Rectangle((mark[1] - 0.5, mark[0] - 0.5), 1, 1, **box))


def line(folder, axis_of, means, intervals, best, what, title, notes):
    """Draws means [n] with their intervals [n, 2] over the values of one key, evenly spaced."""
    name, values = axis_of
    size = (max(6.0, 0.9 * len(values) + 2.5), 4.2)
    with figures.canvas(folder, "heat_map", size, title) as (_, grid, caption):
        axis, at = grid[0, 0], np.arange(len(values))
        known = np.isfinite(means)
        spread = np.abs(np.nan_to_num(intervals.T - means))
        style = {"color": figures.PALETTE[0], "capsize": 4, "lw": 2, "ms": 6, "fmt": "o-"}
        axis.errorbar(at[known], means[known], spread[:, known], **style)
        for i in at[~known]:
            place = {"transform": axis.get_xaxis_transform(), "ha": "center", "color": figures.GREY}
            axis.text(i, 0.03, "-", **place)
        for i in at[known]:
            axis.annotate(
                number(means[i]), (i, means[i]), (7, 5), textcoords="offset points", fontsize=9
            )
        if best is not None:
            ring = {"facecolors": "none", "edgecolors": "#D55E00", "linewidths": 2.5, "zorder": 3}
            axis.scatter(*(best[0], means[best[0]]), s=170, **ring)
        axis.set_xticks(at, [text(value) for value in values])
        axis.set(xlabel=name, ylabel=what, xlim=(-0.5, len(values) - 0.5))
        axis.margins(y=0.12)
        axis.grid(alpha=0.25)
        for note in notes:
            caption(note)
    return figures.written(folder, "heat_map")
