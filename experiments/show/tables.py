"""From the arrays of `returns.npz` to the `results` of summary.json, and to text tables."""

import numpy as np

from gentle_jax import statistics
from gentle_jax.protocols import base
from gentle_jax.types import Cost

from . import paper_tables

TASK_SETS = ("test", "train")  # the order of tables: what generalises first
COLUMNS = (
    "task set", "protocol", "mean", "std", "95% CI", "IQM", "its 95% CI", "normalized", "spent",
    "paper",
)  # fmt: skip
FEW, FEW_MARK = 5, "†"  # seeds of which an interval says little, and what it then has
FEW_WORDS = f"fewer than {FEW} seeds: such an interval says little"
FEW_NOTE = f"{FEW_MARK} {FEW_WORDS}"
EPISODES = {
    "final": "return of the last episode",
    "all": "mean return of all episodes",
    "first": "return of the first episode",
}


def blocks(arrays):
    """Returns [(name, task_set, protocol)] of the returns in `arrays`, test tasks first."""
    parts = [(name, *name.split("/")) for name in arrays if name.startswith(TASK_SETS)]
    parts = [item for item in parts if len(item) == 3]
    return sorted(parts, key=lambda item: TASK_SETS.index(item[1]))


def results(arrays, meta, groups=None, costs=None):
    """Returns the `results` of summary.json: one entry per task set x protocol x metric.

    Args: arrays, the mapping stored in `returns.npz`: "<task_set>/<protocol>"
    [eval_point, seed, task, episode], "eval_steps" [eval_point], "random_return" and
    "reference_return" [num_tasks], "train_ids", "test_ids"; meta, a dict with "suite", "env",
    "algorithm" (the paper's name of it, or None), "metric" (the native one) and "num_steps" (those
    asked for: what comes on top is pretraining); groups, [(label, slice of the seed axis)] of a
    sweep; costs, the mapping stored in `costs.npz`, whose axes are those of returns. Only the last
    point enters, never the best one; what is not finite there stays so.
    Protocols in the order of `arrays`, native metric first; each group is a block whose entries
    have "sweep".
    """
    entries = []
    for label, part in groups or [(None, slice(None))]:
        for name, task_set, protocol in blocks(arrays):
            returns = np.asarray(arrays[name])[-1, part]
            ids = np.asarray(arrays[f"{task_set}_ids"])
            bounds = [np.asarray(arrays[f"{key}_return"])[ids] for key in ("random", "reference")]
            for metric, pick in base.metrics(meta["metric"]).items():
                cell = (meta["suite"], meta["env"], meta["algorithm"], protocol, task_set, metric)
                entry = {"task_set": task_set, "protocol": protocol, "metric": metric}
                step = int(arrays["eval_steps"][-1])
                entry |= {"step": step, "pretraining": step - meta["num_steps"]}
                entry |= statistics.summarize(pick(returns), *bounds)
                entry["cost"] = costs and {
                    kind: float(pick(np.asarray(costs[f"{name}/{kind}"])[-1, part]).mean())
                    for kind in Cost._fields
                }
                entry["paper"] = paper_tables.lookup(*cell)
                entries.append(entry if label is None else {"sweep": label} | entry)
    return entries


def native(entries):
    """Returns the native metric's entries: the first of each sweep x task set x protocol."""
    first = {}
    for entry in entries:
        first.setdefault((entry.get("sweep"), entry["task_set"], entry["protocol"]), entry)
    return list(first.values())


def entry(summary, protocol, task_set):
    """Returns a summary's entry of the metric that comes first, or None."""
    for one in summary["results"]:
        if (one["protocol"], one["task_set"]) == (protocol, task_set):
            return one
    return None


def of_env(by_cell, env):
    """Returns {row: value} of {(row, environment): value} in one environment."""
    return {row: one for (row, at), one in by_cell.items() if at == env}


def is_sweep(summary):
    """Whether a summary is of a sweep, whose grid points have results of their own."""
    return any("sweep" in entry for entry in summary["results"])


def number(value):
    """Returns a number as text."""
    return f"{value:.2f}"


def spent(entry):
    """Returns an entry's cost as text: steps, episodes and queries before what is reported."""
    cost = entry.get("cost")  # None: of a run from before it was counted
    return "/".join(f"{round(cost[kind], 1):g}" for kind in Cost._fields) if cost else "-"


def interval(entry, name):
    """Returns an entry's interval as text, marked where there are few seeds; "-" for one seed."""
    if len(entry["per_seed"]) == 1 or name not in entry:  # or of a version that had none
        return "-"
    low, high = entry[name]
    return f"[{number(low)}, {number(high)}]{mark(entry)}"


def mark(entry):
    """Returns what an entry's interval has behind it: nothing, or that of few seeds."""
    return FEW_MARK if 1 < len(entry["per_seed"]) < FEW else ""


def row(entry):
    """Returns the texts of COLUMNS for one entry; one seed has neither std nor interval."""
    alone = len(entry["per_seed"]) == 1
    paper = entry["paper"]
    return [
        entry["task_set"],
        entry["protocol"],
        number(entry["mean"]),
        "-" if alone else number(entry["std"]),
        interval(entry, "ci95"),
        number(entry["iqm"]),
        interval(entry, "iqm_ci95"),
        "-" if entry["normalized"] is None else number(entry["normalized"]),
        spent(entry),
        f"{paper['mean']:.2f} +- {paper['spread']:.2f} ({paper['kind']})" if paper else "-",
    ]


def grid(entries):
    """Returns (header, rows) of the native metric; a sweep adds its column in front."""
    entries = native(entries)
    swept = any("sweep" in entry for entry in entries)
    header = ["sweep"] * swept + list(COLUMNS)
    return header, [[entry.get("sweep", "-")] * swept + row(entry) for entry in entries]


def note(entries):
    """Returns one line that says what the numbers are, as every table must."""
    metric = entries[0]["metric"]
    before = lambda entry: entry.get("pretraining", 0)
    spell = lambda values: "/".join(f"{value:,}" for value in sorted(set(values)))
    seeds = spell(len(entry["per_seed"]) for entry in entries)
    steps = f"{spell(entry['step'] - before(entry) for entry in entries)} steps"
    if any(map(before, entries)):
        steps += f" (and {spell(map(before, entries))} of pretraining)"
    few = any(map(mark, entries))
    return (
        f"{EPISODES.get(metric, metric)}, {seeds} seed(s), after {steps} "
        f"(last, not best); normalized: 0 = random policy, 1 = reference; spent: environment "
        f"steps/episodes/oracle queries in the tested task before a reported episode"
        + (f"; {FEW_NOTE}" if few else "")
    )


def render(entries):
    """Returns the aligned plain-text table of `results` for a terminal, native metric only."""
    header, rows = grid(entries)
    num_names = len(header) - len(COLUMNS) + 2  # names align left, numbers right
    return f"{plain_grid([header, *rows], num_names)}\n{note(entries)}"


def plain_grid(rows, num_left):
    """Returns rows of texts, the first a heading, in columns, the first ones aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda text, i: text.ljust(widths[i]) if i < num_left else text.rjust(widths[i])
    lines = ["  ".join(pad(text, i) for i, text in enumerate(line)) for line in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_grid(rows, num_left=None):
    """Returns rows of texts, the first a heading, in Markdown."""
    num_left = len(rows[0]) if num_left is None else num_left
    marks = ["---" if i < num_left else "---:" for i in range(len(rows[0]))]
    lines = [
        " | ".join(text.replace("|", "\\|") for text in line)
        for line in [rows[0], marks, *rows[1:]]
    ]
    return "\n".join(f"| {line} |" for line in lines)


def markdown(entries):
    """Returns the same table as `render` in Markdown."""
    header, rows = grid(entries)
    num_names = len(header) - len(COLUMNS) + 2
    return f"{markdown_grid([header, *rows], num_names)}\n\n{note(entries).capitalize()}."
