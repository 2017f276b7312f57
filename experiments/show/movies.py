"""Episodes as GIF, and as mp4 where ffmpeg is installed: the scene beside its rewards."""

import matplotlib
import numpy as np
from matplotlib import animation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .figures import GREY, PALETTE, STYLE

FASTEST = 0.04  # seconds of a frame: viewers slow down GIFs that are faster
DPI = 100


def stride_of(dt):
    """Returns every how many steps of dt seconds a frame is shown, so that time runs true."""
    return max(1, round(FASTEST / dt))


def write(path, frames, rewards, dt, draw, title):
    """Writes `path`.gif, and `path`.mp4 where ffmpeg is installed; returns their paths.

    Args: frames, the steps that are shown; rewards [steps]; dt, seconds per frame; draw, a function
    (axis) -> update(index of the frame), which draws the scene; title, one line.
    """
    kinds = {"gif": animation.PillowWriter}
    if animation.writers.is_available("ffmpeg"):
        kinds["mp4"] = animation.FFMpegWriter
    written = []
    for kind, make_writer in kinds.items():
        target = path.with_name(f"{path.name}.{kind}")
        with matplotlib.rc_context(STYLE | {"font.size": 9, "axes.titlesize": 9}):
            _write(target, make_writer(fps=1 / dt), frames, rewards, draw, title)
        written.append(target)
    return written


def _write(path, writer, frames, rewards, draw, title):
    figure = Figure(figsize=(8.8, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["scene", "reward"], ["scene", "sum"]], width_ratios=(1.5, 1))
    figure.suptitle(title, fontsize=10)
    update, total = draw(axes["scene"]), np.cumsum(rewards)
    steps, cursors = np.arange(1, len(rewards) + 1), []
    curves = (("reward", rewards, PALETTE[1]), ("sum", total, PALETTE[0]))
    for (name, values, colour), text in zip(curves, ("reward per step", "return"), strict=True):
        axes[name].plot(steps, values, color=colour, lw=1.2)
        axes[name].set_title(text)
        axes[name].set_xlim(0, max(len(rewards), 1))
        axes[name].xaxis.get_major_locator().set_params(integer=True)
        cursors.append(axes[name].axvline(0, color=GREY, lw=1))
    axes["sum"].set_xlabel("step")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: it is most of a frame's time
    with writer.saving(figure, str(path), DPI):
        for index, step in enumerate(frames):
            update(index)
            for cursor in cursors:
                cursor.set_xdata([step, step])
            axes["sum"].set_title(f"return {total[step - 1] if step else 0.0:.2f}")
            writer.grab_frame()


def pictures(images):
    """Returns the `draw` of `write` that shows images [frames, height, width, 3]."""

    def draw(axis):
        shown = axis.imshow(images[0])
        axis.axis("off")
        return lambda index: shown.set_data(images[index])

    return draw


def plane(path, goal, frames):
    """Returns the `draw` of `write` for a path [steps + 1, 2]; goal [2] or None."""

    def draw(axis):
        if goal is not None:
            axis.scatter(*goal, marker="*", s=190, color=PALETTE[1], edgecolors="black", zorder=3)
        axis.plot(*path.T, color=GREY, lw=0.6, alpha=0.4)
        (line,) = axis.plot([], [], color=PALETTE[0], lw=2)
        (dot,) = axis.plot([], [], "o", color="black", ms=5, zorder=4)
        axis.set_aspect("equal", adjustable="datalim")
        axis.set(xlabel="x (position)", ylabel="y (position)")

        def update(index):
            seen = path[: frames[index] + 1]
            line.set_data(*seen.T)
            dot.set_data(*seen[-1:].T)

        return update

    return draw
