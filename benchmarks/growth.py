"""How measured quantities grow: fits of power laws and lines, and a figure of them.

Rows are those of `benchmarks.scaling`: one per (series, algorithm, mapping, size).
"""

from pathlib import Path

import numpy as np
import scipy.stats

from experiments.show import figures

FITTED = {  # quantity: what it grows with, per series
    "step_seconds": {"runs": "runs", "tasks": "tasks"},
    "compile_seconds": {"runs": "runs", "tasks": "tasks"},
    "argument_bytes": {"runs": "runs_per_device", "tasks": "tasks"},
    "device_bytes": {"runs": "runs_per_device", "tasks": "tasks"},
}


def fit_power(x, y):
    """Returns the fit of y = factor x^exponent: least squares on logarithms, or None.

    The interval is Student's, None for two points; there is no fit of one point, or of a y that is
    0 or less.
    """
    if len(set(x)) < 2 or min(y) <= 0:
        return None
    fit = scipy.stats.linregress(np.log(x), np.log(y))
    error = half = None
    if len(x) > 2:
        error = float(fit.stderr)
        half = float(scipy.stats.t.ppf(0.975, len(x) - 2)) * error
    return {
        "exponent": float(fit.slope),
        "standard_error": error,
        "interval95": None if half is None else [fit.slope - half, fit.slope + half],
        "factor": float(np.exp(fit.intercept)),
        "r2": float(fit.rvalue**2),
    }


def fit_line(x, y):
    """Returns the fit of y = intercept + slope x, or None where x does not vary."""
    if len(set(x)) < 2:
        return None
    fit = scipy.stats.linregress(x, y)
    constant = len(set(y)) == 1  # its correlation is not defined; the line goes through it
    return {
        "intercept": float(fit.intercept),
        "slope": float(fit.slope),
        "r2": 1.0 if constant else float(fit.rvalue**2),
    }


def groups_of(rows):
    """Returns {(series, algorithm, mapping): rows}."""
    groups = {}
    for row in rows:
        groups.setdefault((row["series"], row["algorithm"], row["mapping"]), []).append(row)
    return groups


def fits(rows):
    """Returns a fit per table and quantity, with how it ends: `last_over_first`."""
    results = []
    for (series, algorithm, mapping), group in groups_of(rows).items():
        for quantity, against in FITTED.items():
            x = [row[against[series]] for row in group]
            y = [row[quantity] for row in group]
            if len(set(x)) < 2:
                continue
            results.append(
                {
                    "series": series,
                    "algorithm": algorithm,
                    "mapping": mapping,
                    "quantity": quantity,
                    "against": against[series],
                    "power": fit_power(x, y),
                    "line": fit_line(x, y),
                    "last_over_first": y[-1] / y[0],
                }
            )
    return results


def memory_rows(rows):
    """Returns, for every table over runs, what the program's arguments hold.

    A line through argument bytes over runs per device: its constant is the dataset, its slope one
    run's state. Both are told as shares of what dataset and state weigh by themselves; a compiler
    drops arguments that a program does not read, so shares may be below 1.
    """
    results = []
    for (series, algorithm, mapping), group in groups_of(rows).items():
        line = fit_line(*zip(*((r["runs_per_device"], r["argument_bytes"]) for r in group)))  # noqa: B905
        if series != "runs" or line is None:
            continue
        results.append(
            {
                "algorithm": algorithm,
                "mapping": mapping,
                "most_runs": max(row["runs"] for row in group),
                "dataset_copies_per_device": line["intercept"] / group[0]["dataset_bytes"],
                "states_per_run": line["slope"] / group[0]["state_bytes_per_run"],
                "r2": line["r2"],
            }
        )
    return results


PANELS = {  # quantity: (axis label, scale)
    "step_seconds": ("ms per step", 1e3),
    "device_bytes": ("MB per device", 1e-6),
    "compile_seconds": ("s to compile", 1.0),
}


def draw(report, out):
    """Draws the tables beside the JSON file `out`: a row of panels per series, logarithmic axes."""
    rows, out = report["rows"], Path(out)
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    series = list(dict.fromkeys(row["series"] for row in rows))
    size, shape = (12, 0.8 + 3.4 * len(series)), (len(series), len(PANELS))
    with figures.canvas(out.parent, out.stem, size, "Growth with runs and tasks", shape) as made:
        _, axes, caption = made
        for (name, algorithm, mapping), group in groups_of(rows).items():
            style = {"color": figures.PALETTE[algorithms.index(algorithm)], "markersize": 4}
            style["label"] = f"{algorithm}, {mapping}" if name == "runs" else algorithm
            form = "-o" if mapping == "in turn" else "--s"
            for axis, (quantity, (_, scale)) in zip(
                axes[series.index(name)], PANELS.items(), strict=True
            ):
                x = [row[name] for row in group]
                axis.plot(x, [scale * row[quantity] for row in group], form, **style)
        for line, name in zip(axes, series, strict=True):
            sizes = sorted({row[name] for row in rows if row["series"] == name})
            for axis, (label, _) in zip(line, PANELS.values(), strict=True):
                _decades(axis, sizes)
                axis.set(xlabel=name, ylabel=label)
            line[-1].legend(fontsize=9, loc="lower right")
        caption(f"Preset quick on {report['machine']['cpu']}, {report['machine']['cores']} cores,")
        caption(f"backend {report['machine']['backend']}. Runs are split over the devices;")
        caption("memory is the program's arguments and scratch on one of them.")


def _decades(axis, sizes):
    """Makes both axes logarithmic: ticks at `sizes` below, whole decades at the side."""
    axis.set(xscale="log", yscale="log", xticks=sizes)
    axis.set_xticklabels([str(size) for size in sizes])
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    low, high = np.log10(axis.get_ylim())
    axis.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    axis.yaxis.set_major_formatter("{x:g}")
