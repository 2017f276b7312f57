"""Finished runs side by side: returns, costs, and how likely one is above another."""

import json
import textwrap

import numpy as np

from experiments.show import scores, tables
from gentle_jax import config as config_lib
from gentle_jax import errors

SAME = ("suite", "env", "physics")  # what runs must share to be compared
NAMED = ("algorithm", "backbone", "fidelity", "preset", "num_steps", "num_seeds")
SEEN = (*NAMED, "protocols")  # of the section `run`: in the table anyway
COLUMNS = (
    "run", "protocol", "test", "95% CI", "normalized", "IQM", "its 95% CI", "train, normalized",
    "spent",
)  # fmt: skip


def lines(runs):
    """Returns text lines of [(folder, summary)]; raises UserError for what is not comparable."""
    for folder, summary in runs:
        if any("sweep" in entry for entry in summary["results"]):
            raise errors.UserError(
                f"{folder} is a sweep, whose grid points have a table of their own: pass runs "
                f"without --sweep, or see that table with --run={folder}"
            )
    groups = {}
    for run in runs:
        groups.setdefault(common(*run), []).append(run)
    text = []
    for of, members in groups.items():
        names = labels([summary for _, summary in members])
        text += [", ".join(f"{n} {v}" for n, v in of), ""]
        text += legend(names, [folder for folder, _ in members])
        text += [tables.plain_grid([COLUMNS, *rows(names, members)], 2), ""]
        text += pairs(names, members)
    entries = [entry for _, summary in runs for entry in summary["results"]]
    return [*text, tables.note(tables.native(entries))]


def common(folder, summary):
    """Returns ((name, value), ...): what runs share that are shown in one table."""
    own = tuple((name, summary[name]) for name in SAME)
    given = settings_of(folder).get("tasks")
    tasks = () if given is None else (("tasks", given),)
    return (*own, ("metric", summary["results"][0]["metric"]), *tasks)


def labels(summaries):
    """Returns a name for each summary: what differs between them, the algorithm always."""
    differ = [
        name for name in NAMED if name == "algorithm" or len({s[name] for s in summaries}) > 1
    ]
    texts = [" ".join(str(s[name]) for name in differ) for s in summaries]
    twice = {text for text in texts if texts.count(text) > 1}
    return [f"{t} #{i}" if t in twice else t for i, t in enumerate(texts, 1)]


def legend(names, folders):
    """Returns a line for each run: its folder, and the settings in which not all agree."""
    known = [settings_of(folder) for folder in folders]
    keys = sorted({key for one in known for key in one})
    differ = [key for key in keys if len({str(one.get(key)) for one in known}) > 1]
    differ = [key for key in differ if key.removeprefix("run.") not in SEEN]
    text = []
    for name, folder, one in zip(names, folders, known, strict=True):
        text.append(f"{name}: {folder}")
        # one method lacks another's settings: those are no difference of the comparison
        told = "  ".join(f"{key}={one[key]}" for key in differ if all(key in o for o in known))
        text += textwrap.wrap(told, 110, initial_indent="    ", subsequent_indent="    ")
    return [*text, ""]


def settings_of(folder):
    """Returns {dotted key: value} of a run's config.json, {} where it cannot be read."""
    try:
        content = json.loads((folder / "config.json").read_text())
        given = content.pop("tasks", None)  # others than the suite's
        tasks = {} if given is None else {"tasks": config_lib.fingerprint(given)}
        return tasks | {
            f"{section}.{key}": value
            for section, own in content.items()
            if isinstance(own, dict)
            for key, value in own.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def rows(names, members):
    """Returns the texts of COLUMNS: a row for each run and protocol."""
    found = []
    for name, (_, summary) in zip(names, members, strict=True):
        entries = tables.native(summary["results"])
        by = {(one["protocol"], one["task_set"]): one for one in entries}
        for protocol in summary["protocols"]:
            one, train = by[protocol, "test"], by[protocol, "train"]
            found.append([
                name, protocol, tables.number(one["mean"]), tables.interval(one, "ci95"),
                f"{one['normalized']:.3f}", tables.number(one["iqm"]),
                tables.interval(one, "iqm_ci95"), f"{train['normalized']:.3f}", tables.spent(one),
            ])  # fmt: skip
    return found


def pairs(names, members):
    """Returns, for each protocol of two runs or more, how likely a row is above a column."""
    metric = members[0][1]["results"][0]["metric"]
    known = {n: scores.of_run(f, metric) for n, (f, _) in zip(names, members, strict=True)}
    text = []
    for key in dict.fromkeys(key for of in known.values() for key in of):
        task_set, protocol = key.split("/")
        own = {name: of[key] for name, of in known.items() if key in of}
        tasks = {one.shape[1] for one in own.values()}
        if task_set != "test" or len(own) < 2 or len(tasks) > 1:
            continue
        cell = lambda a, b, own=own: "-" if a == b else chance(own[a], own[b])
        grid = [[f"{protocol}: row above column", *own]]
        grid += [[a, *(cell(a, b) for b in own)] for a in own]
        text += [tables.plain_grid(grid, 1), ""]
    if text:
        text.insert(0, "Probability of improvement on test tasks, 95% bootstrap interval:\n")
    return text


def chance(ours, theirs):
    """Returns the probability of improvement of scores [S, T] and its interval, as text."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return "nan"
    value, (low, high), _ = scores.two_sided(ours, theirs)
    few = tables.FEW_MARK if min(len(ours), len(theirs)) < tables.FEW else ""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]{few}"
