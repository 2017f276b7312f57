"""How well codes of contexts tell tasks apart: numbers, their table, and a figure."""

import numpy as np
from sklearn.metrics import silhouette_score

from gentle_jax import statistics

from . import figures, tables

NUMBERS = "contexts"  # of a summary: what `numbers` returns
SHOWN = 60  # contexts of a task in the figure


def numbers(z):
    """Returns {"silhouette" [seed], "accuracy" [seed], "tasks", "contexts", "plane"} of z.

    Args: z [S, T, N, Z]. Accuracy: how often the second half of a task's contexts lie nearest to
    the mean of its first half. NaN for a seed whose z is not finite; silhouettes are of all z, not
    of the plane, which is that of `plane_of`.
    """
    found = {"silhouette": [], "accuracy": [], "tasks": z.shape[1], "contexts": z.shape[2]}
    found["plane"] = plane_of(z)
    labels = np.repeat(np.arange(z.shape[1]), z.shape[2])
    for one in np.asarray(z, np.float64):
        rows = one.reshape(-1, one.shape[-1])
        apart = np.isfinite(rows).all() and len(np.unique(rows, axis=0)) > 1
        found["silhouette"].append(float(silhouette_score(rows, labels)) if apart else np.nan)
        half = one.shape[1] // 2
        centres, rest = one[:, :half].mean(1), one[:, half:]
        distance = np.linalg.norm(rest[:, :, None] - centres, axis=-1)  # [T, N, T]
        right = distance.argmin(-1) == np.arange(len(one))[:, None]
        found["accuracy"].append(float(right.mean()) if np.isfinite(rows).all() else np.nan)
    return found


def plane_of(z):
    """Returns where contexts of one seed lie in the plane, [T, SHOWN, 2] as lists; None if lost.

    Args: z [S, T, N, Z]; the seed is the first that is finite.
    """
    one = np.asarray(z, np.float64)[figures.first_finite(z), :, :SHOWN]
    if not np.isfinite(one).all():
        return None
    points, _ = figures.flatten_to_plane(one.reshape(-1, one.shape[-1]))
    return np.round(points.reshape(*one.shape[:2], 2), 2).tolist()


def lines(summaries):
    """Returns the Markdown lines of the numbers of {(row, env): summary}; none without them."""
    told = {at: s[NUMBERS] for at, s in summaries.items() if NUMBERS in s}
    if not told:
        return []
    rows = [["row", "environment", "nearest centroid", "by chance", "silhouette"]]
    for (row, env), own in told.items():
        values = [spread(own[name]) for name in ("accuracy", "silhouette")]
        rows.append([row, env, values[0], f"{1 / own['tasks']:.2f}", values[1]])
    count = next(iter(told.values()))["contexts"]
    note = (
        f"Tasks recognized in {count} contexts of each test task, collected by the sampled policy "
        f"at the prior z: how often a context lies nearest to the mean of its task's other half, "
        f"and the silhouette of all z (1: apart, 0: mixed); mean and 95 % bootstrap interval over "
        f"seeds. Contexts of one task are draws from the same five episodes, as in the paper; a "
        f"method that reads whole episodes in order has an episode for each."
    )
    return [tables.markdown_grid(rows, 2), "", note]


def spread(values):
    """Returns numbers of seeds as text: their mean and its interval."""
    values = np.asarray(values, np.float64)
    low, high = statistics.bootstrap_ci(values)
    few = tables.FEW_MARK if 1 < len(values) < tables.FEW else ""
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]{few}"


def draw(folder, name, planes, title=""):
    """Draws contexts of one seed in the plane, a panel for each row, a colour for each task.

    Args: planes, {row: positions [task, context, 2]}.
    """
    size, count = (4.4 * len(planes), 4.8), len(next(iter(planes.values()))[0])
    with figures.canvas(folder, name, size, title, (1, len(planes))) as (_, axes, caption):
        for axis, (row, plane) in zip(axes[0], planes.items(), strict=True):
            plane = np.asarray(plane)
            task = np.repeat(np.arange(len(plane)), plane.shape[1])
            colours = "tab10" if len(plane) <= 10 else "turbo"
            # as an image: thousands of marks are a heavy page
            axis.scatter(*plane.reshape(-1, 2).T, c=task, cmap=colours, s=14, rasterized=True)
            axis.set(xticks=[], yticks=[], title=row, xlabel="dimension 1", ylabel="dimension 2")
        caption(
            f"{count} contexts of each test task, collected by the policy of one seed; a colour is "
            f"a task. t-SNE of each panel alone: distances of panels do not compare."
        )
    return figures.written(folder, name)
