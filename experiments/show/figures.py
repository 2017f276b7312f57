"""Figures of a run: each function takes numpy arrays and a folder, and writes PNG and SVG.

Figures are built without pyplot, so nothing global is left behind. NaN marks what was not reached.
"""

import contextlib
import pathlib
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from gentle_jax import statistics
from gentle_jax.protocols import base

from . import tables

# Okabe and Ito, colour-blind safe; the yellow comes last, it is faint on white
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442",
)  # fmt: skip
GREY = "#6e6e6e"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "gentle_jax",  # equal inputs give equal files
}
DPI = 150
MAX_POINTS = 800  # of t-SNE, a few seconds on one CPU core
MAX_LABELLED = 400  # cells of an image that still get their number written in
CAPTION_WIDTH, TITLE_WIDTH = 13, 8.5  # characters per inch, at their sizes
LEGEND_WIDTH = 1.8  # inches
LABEL_WIDTH, LINE_HEIGHT = 0.075, 0.24  # inches of a character and of a line of a legend


@contextlib.contextmanager
def canvas(folder, name, size, title, shape=(1, 1), **kwargs):
    """Yields (figure, axes [rows, columns], set_caption), then writes `name`.png and `name`.svg."""
    captions = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(*shape, squeeze=False, **kwargs)
        yield figure, axes, captions.append
        if title:
            wide = int((size[0] - LEGEND_WIDTH) * TITLE_WIDTH)  # a legend may stand beside it
            lines = [line for text in title.splitlines() for line in textwrap.wrap(text, wide)]
            title = "\n".join(lines)
            figure.suptitle(title, fontweight="bold", fontsize=13, x=0.01, ha="left")
        text = textwrap.fill(" ".join(captions), int(size[0] * CAPTION_WIDTH))
        figure.supxlabel(text, fontsize=9.5, color=GREY, x=0.01, ha="left")
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=DPI)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def written(folder, name):
    """Returns the paths that `canvas` wrote."""
    return [pathlib.Path(folder) / f"{name}.{kind}" for kind in ("png", "svg")]


def steps_axis(axis, steps):
    """Labels an x axis of training steps in thousands where they are that large."""
    if len(steps) == 1:
        axis.set_xticks(steps)
    if max(steps, default=0) >= 10_000:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axis.set_xlabel("training steps (gradient updates)")


def num_diverged(scores):
    """Returns how many seeds of scores [point, seed] are NaN at a point that others reached."""
    reached = np.isfinite(scores).any(1)
    return int((~np.isfinite(scores[reached])).any(0).sum())


def interval_band(axis, steps, scores, color, label):
    """Draws the mean over seeds of scores [point, seed] with its 95% bootstrap band."""
    kept = np.isfinite(scores).any(1)
    # a diverged seed leaves the curve of the others; the table shows it as NaN
    scores = [row[np.isfinite(row)] for row in scores[kept]]
    steps = np.asarray(steps)[kept]
    if not scores:
        return
    mean = np.array([row.mean() for row in scores])
    low, high = np.array([statistics.bootstrap_ci(row, 2_000) for row in scores]).T
    axis.plot(steps, mean, "o-", color=color, ms=4, lw=2, label=label)
    if len(steps) > 1:
        axis.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
    else:
        axis.errorbar(steps, mean, [mean - low, high - mean], color=color, capsize=4)


def learning_curves(folder, arrays, metric="final", groups=None, title="", reference="reference"):
    """Draws the return over training: mean over seeds, a panel per task set x protocol.

    Args: arrays and groups as `tables.results` takes them; metric, a name in
    `gentle_jax.protocols.base.METRICS`; reference, what the upper line is, for the legend.
    """
    blocks = tables.blocks(arrays)
    protocols = list(dict.fromkeys(protocol for *_, protocol in blocks))
    task_sets = list(dict.fromkeys(task_set for _, task_set, _ in blocks))
    steps = np.asarray(arrays["eval_steps"])
    shape = (max(len(task_sets), 1), max(len(protocols), 1))
    labels = [label for label, _ in groups or []]
    wide = max(2.0, 0.8 + LABEL_WIDTH * max(map(len, labels), default=0))
    high = max(2.7 * shape[0], LINE_HEIGHT * len(labels)) + 1.3
    size, diverged = (max(3.4 * shape[1], 5.5) + wide, high), 0
    share = {"sharex": True, "sharey": True}
    with canvas(folder, "learning_curves", size, title, shape, **share) as (figure, axes, caption):
        for name, task_set, protocol in blocks:
            i, j = task_sets.index(task_set), protocols.index(protocol)
            axis, ids = axes[i, j], np.asarray(arrays[f"{task_set}_ids"])
            scores = base.METRICS[metric](np.asarray(arrays[name], np.float64)).mean(-1)
            diverged = max(diverged, num_diverged(scores))
            for k, (label, part) in enumerate(groups or [("mean over seeds", slice(None))]):
                interval_band(axis, steps, scores[:, part], PALETTE[k % len(PALETTE)], label)
            lines = [("reference_return", "--", reference), ("random_return", ":", "random policy")]
            for key, style, label in lines:
                level = np.asarray(arrays[key])[ids].mean()
                if np.isfinite(level):
                    axis.axhline(level, color=GREY, ls=style, lw=1.5, label=label)
            axis.set_title(f"{task_set} tasks, {protocol}")
            axis.grid(alpha=0.25)
            axis.margins(y=0.08)
        for axis in axes[-1]:
            steps_axis(axis, steps)
        for axis in axes[:, 0]:
            axis.set_ylabel("return per episode")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        seeds = np.asarray(arrays[blocks[0][0]]).shape[1] if blocks else 0
        caption(
            f"{tables.EPISODES.get(metric, metric).capitalize()}, averaged over tasks; band: 95% "
            f"bootstrap interval over {'seeds' if groups else f'{seeds} seed(s)'}."
        )
        if diverged:
            caption(f"Without {diverged} run(s) that diverged.")
    return written(folder, "learning_curves")


def behaviour_returns(folder, steps, returns, random, reference, title=""):
    """Draws the returns of a dataset's levels [level, task]: thin lines tasks, thick their mean.

    Args: steps [level], the behaviour levels; random and reference [task], whose means are
    drawn as lines.
    """
    returns = np.asarray(returns, np.float64)
    with canvas(folder, "returns", (7.5, 4.6), title) as (figure, axes, caption):
        axis = axes[0, 0]
        mark = "o-" if len(steps) > 1 else "o"  # a single level has no line to be seen by
        axis.plot(steps, returns, mark, color=PALETTE[0], lw=0.8, ms=2, alpha=0.35)
        axis.plot(steps, returns.mean(1), "o-", color=PALETTE[0], lw=2.4, ms=5, label="mean")
        for level, style, label in ((reference, "--", "reference"), (random, ":", "random policy")):
            axis.axhline(np.mean(level), color=GREY, ls=style, lw=1.5, label=label)
        steps_axis(axis, steps)
        axis.set(xlabel="behaviour checkpoint (environment steps)", ylabel="return per episode")
        axis.grid(alpha=0.25)
        axis.margins(y=0.08)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
        caption(f"Mean return of each task's stored episodes; thin: the {returns.shape[1]} tasks.")
    return written(folder, "returns")


def flatten_to_plane(z):
    """Returns ([n, 2] points in the plane, how they were made): t-SNE unless there is no need."""
    n, width = z.shape
    if width == 1:
        return np.concatenate([z, np.zeros_like(z)], 1), "z itself (one number)"
    # equal points have no principal axis to start from
    if width == 2 or n < 4 or np.ptp(z, axis=0).max() == 0:
        return z[:, :2], "z itself" if width == 2 else "the first two numbers of z"
    perplexity = float(min(30, max(1, (n - 1) / 3)))
    # its threads spin against each other: one is several times faster at these sizes
    with threadpool_limits(1):
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(z)
    return points, f"t-SNE of {n} contexts (perplexity {perplexity:.0f}, PCA start)"


def task_colours(parameters, names):
    """Returns [(values [task], label, colour map)], a panel each, for parameters [task, P]."""
    parameters = np.asarray(parameters, np.float64)
    parameters = parameters.reshape(len(parameters), -1)
    varies = np.flatnonzero(np.ptp(parameters, axis=0) > 0)
    if not len(varies):
        return [(np.arange(len(parameters)), "task number", "viridis")]
    parameters, names = parameters[:, varies], [names[i] for i in varies]
    if parameters.shape[1] == 2:
        radius = np.hypot(*parameters.T)
        if np.ptp(radius) < 0.01 * radius.max():
            angle = np.degrees(np.arctan2(parameters[:, 1], parameters[:, 0]))
            full_turn = (angle < -5).any() and (angle > 5).any()
            label = f"angle of ({names[0]}, {names[1]}) in degrees"
            return [(angle, label, "twilight" if full_turn else "viridis")]
    more = f" (one of {len(names)} parameters)" if len(names) > 2 else ""
    return [(parameters[:, i], names[i] + more, "viridis") for i in range(min(2, len(names)))]


def first_finite(per_seed):
    """Returns the first seed of [seed, ...] that holds only numbers; seed 0 if there is none."""
    good = [k for k, one in enumerate(per_seed) if np.isfinite(one).all()]
    return good[0] if good else 0


def embeddings(folder, z, ids, parameters, names, title=""):
    """Draws the contexts of one seed in the plane, coloured by the parameter of their task.

    Args: z, {task_set: [seed, task, context, Z]}; ids, {task_set: task ids [task]}; parameters
    [num_tasks, P], as in `Env.parameters`, with P names. Seed 0, or the first without NaN.
    """
    task_sets = [name for name in ("train", "test") if name in z]
    seed = first_finite(
        [np.concatenate(one) for one in zip(*(z[s] for s in task_sets), strict=True)]
    )
    contexts = max(1, MAX_POINTS // sum(z[name].shape[1] for name in task_sets))
    chosen = {name: np.asarray(z[name])[seed, :, :contexts] for name in task_sets}
    rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in chosen.values()])
    task_of = np.concatenate([np.repeat(ids[s], chosen[s].shape[1]) for s in task_sets])
    is_test = np.concatenate([np.full(chosen[s][..., 0].size, s == "test") for s in task_sets])
    kept = np.isfinite(rows).all(1)
    points, projection = flatten_to_plane(rows[kept].astype(np.float64))
    task_of, is_test = task_of[kept], is_test[kept]
    colours = task_colours(parameters, names)
    size = (5.6 * len(colours) + 1.0, 5.4)
    with canvas(folder, "embeddings", size, title, (1, len(colours))) as (figure, axes, caption):
        for axis, (values, label, map_name) in zip(axes[0], colours, strict=True):
            limits = (-180, 180) if map_name == "twilight" else (values.min(), values.max())
            shared = {"cmap": map_name, "norm": Normalize(*limits)}
            marks = {False: ("o", 20, GREY, "train task"), True: ("D", 42, "black", "test task")}
            for test, (marker, area, edge, name) in marks.items():
                part = is_test == test
                if part.any():
                    axis.scatter(
                        *points[part].T, c=values[task_of[part]], marker=marker, s=area,
                        edgecolors=edge, linewidths=0.9 if test else 0.3, label=name, **shared,
                    )  # fmt: skip
            axis.set(xticks=[], yticks=[], xlabel="dimension 1", ylabel="dimension 2")
            scale = matplotlib.cm.ScalarMappable(**shared)
            figure.colorbar(scale, ax=axis, label=label, shrink=0.85)
        entries = axes[0, 0].get_legend_handles_labels()
        legend = axes[0, 0].legend(*entries, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        for handle in legend.legend_handles:
            handle.set(facecolor="white", array=None)
        caption(f"Latent z of offline contexts of seed {seed}: {projection}. One mark per context.")
    return written(folder, "embeddings")


def most_frequent(codes):
    """Returns the most frequent of codes [..., context] over the last axis; NaN without one."""
    codes = np.asarray(codes, np.float64)
    values = np.unique(codes[np.isfinite(codes)])
    if not len(values):
        return np.full(codes.shape[:-1], np.nan)
    counts = (codes[..., None] == values).sum(-2)
    return np.where(counts.max(-1) > 0, values[counts.argmax(-1)], np.nan)


def codes_in_use(codes):
    """Returns [point, seed]: how many codes are matched; NaN where codes [point, seed, ...] is."""
    rows = np.asarray(codes, np.float64).reshape(*codes.shape[:2], -1)
    count = lambda row: len(np.unique(row[np.isfinite(row)])) or np.nan
    return np.array([[count(row) for row in point] for point in rows])


def code_colours(num_codes):
    """Returns a colour map of `num_codes` distinct colours."""
    if num_codes <= len(PALETTE):
        return ListedColormap(PALETTE[:num_codes])
    if num_codes <= 20:
        return matplotlib.colormaps["tab20"].resampled(num_codes)
    return matplotlib.colormaps["turbo"].resampled(num_codes)


def draw_codes(figure, axes, image, num_codes, steps):
    """Draws image [task, point] of codes on the first of axes, numbered where there is room."""
    axis = axes[0]
    cmap = code_colours(num_codes).with_extremes(bad="#e8e8e8")
    norm = BoundaryNorm(np.arange(num_codes + 1) - 0.5, num_codes)
    drawn = axis.imshow(image, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    if image.size <= MAX_LABELLED:
        for (i, j), code in np.ndenumerate(image):
            if np.isfinite(code):
                dark = np.dot(cmap(int(code))[:3], (0.299, 0.587, 0.114)) < 0.55
                ink = "white" if dark else "black"
                axis.text(j, i, int(code), ha="center", va="center", color=ink, fontsize=7.5)
    axis.set_xticks([])
    axis.yaxis.get_major_locator().set_params(integer=True)
    ticks = range(0, num_codes, -(-num_codes // 8))
    figure.colorbar(drawn, ax=axes, label="code", ticks=ticks).minorticks_off()


def draw_row(axis, values, highest, steps):
    """Draws values [point] as one row of numbers, darker towards `highest`; below it the steps."""
    axis.imshow(values[None], cmap="Greys", vmin=0, vmax=2 * highest, aspect="auto")
    for i, value in enumerate(values):
        axis.text(i, 0, f"{value:.3g}" if np.isfinite(value) else "-", ha="center", va="center")
    shown = range(0, len(steps), -(-len(steps) // 6))
    large = max(steps) >= 10_000
    axis.set_xticks(shown, [f"{steps[i] / 1000:g}k" if large else f"{steps[i]:g}" for i in shown])
    axis.set_yticks([])


def code_assignment(folder, codes, eval_steps, num_codes=None, order_name="task id", title=""):
    """Draws which code each task is matched to over training, and how many codes are in use.

    Args: codes [point, seed, task, context], NaN where not reached, tasks in the order of
    `order_name`; eval_steps [point]; num_codes, the size of the codebook (default: largest seen).
    """
    codes = np.asarray(codes, np.float64)
    seen = int(np.nanmax(codes)) + 1 if np.isfinite(codes).any() else 1
    num_codes = max(num_codes or 1, seen)
    image, used = most_frequent(codes[:, 0]).T, codes_in_use(codes)
    tall = max(len(image), 10)
    size, ratios = (7.5, min(7.5, 3.0 + 0.16 * tall)), (max(tall, 12), 1.4)
    shape = {"shape": (2, 1), "height_ratios": ratios}
    with canvas(folder, "code_assignment", size, title, **shape) as (figure, axes, caption):
        draw_codes(figure, axes[:, 0], image, num_codes, eval_steps)
        axes[0, 0].set(title="code of each training task, seed 0", ylabel=f"task, by {order_name}")
        known = [row[np.isfinite(row)] for row in used]
        mean = np.array([row.mean() if row.size else np.nan for row in known])
        draw_row(axes[1, 0], mean, num_codes, eval_steps)
        axes[1, 0].set_title(f"codes in use, of {num_codes}: mean over {codes.shape[1]} seed(s)")
        axes[1, 0].set_xlabel("training steps (gradient updates)")
        caption(
            f"Above: the code matched most often over {codes.shape[-1]} context(s) of the task "
            f"(grey: no codes yet)."
        )
    return written(folder, "code_assignment")


def draw_rollouts(axis, paths, goal, color, label):
    """Draws one task's paths [seed, H + 1, 2], seed 0 thick, and its goal (or None)."""
    for path in paths[1:]:
        axis.plot(*path.T, color=color, lw=0.8, alpha=0.4)
    axis.plot(*paths[0].T, color=color, lw=2.4, label=label, zorder=3)
    starts = paths[:, 0]
    axis.scatter(*starts.T, color="black", s=18, zorder=4)
    if goal is not None:
        axis.scatter(*goal, marker="*", s=190, color=color, edgecolors="black", lw=0.8, zorder=5)


def plane_ratio(paths, landmarks):
    """Returns height over width of what is drawn, within what a figure can have."""
    points = paths.reshape(-1, 2)
    if landmarks is not None:
        points = np.concatenate([points, np.reshape(landmarks, (-1, 2))])
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        return 0.5
    width, height = np.ptp(points, axis=0)
    return float(np.clip(height / max(width, 1e-6), 0.5, 1.0))


def rollouts(folder, paths, mask, landmarks, returns=None, ids=None, title=""):
    """Draws the last scored episode of every test task in the plane, a colour per task.

    Args: paths [seed, task, H + 1, 2]; mask [seed, task, H], 0 after an early end; landmarks
    [task, 2] goals, or None; returns [seed, task], for the legend; ids [task], for the names.
    """
    paths = np.array(paths, np.float64)
    num_seeds, num_tasks = paths.shape[:2]
    paths[:, :, 1:][np.asarray(mask) == 0] = np.nan
    ids = range(num_tasks) if ids is None else ids
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, num_tasks))
    if num_tasks <= len(PALETTE) - 1:
        colours = PALETTE[:num_tasks]
    columns = 1 if num_tasks <= 15 else 2
    size = (7.0 + 1.5 * columns, 1.6 + 5.8 * plane_ratio(paths, landmarks))
    with canvas(folder, "rollouts", size, title) as (figure, axes, caption):
        axis = axes[0, 0]
        for k, task in enumerate(ids):
            mean = f": {np.mean(returns[:, k]):.1f}" if returns is not None else ""
            goal = None if landmarks is None else landmarks[k]
            draw_rollouts(axis, paths[:, k], goal, colours[k], f"task {task}{mean}")
        axis.set(xlabel="x (position)", ylabel="y (position)", title="test tasks")
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid(alpha=0.25)
        heading = "mean return" if returns is not None else None
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", ncols=columns, title=heading)
        stars = "" if landmarks is None else ", star: goal"
        thin = f", thin: the other {num_seeds - 1} seed(s)" if num_seeds > 1 else ""
        caption(f"Last scored episode. Dot: start{stars}, thick line: seed 0{thin}.")
    return written(folder, "rollouts")
