"""Finished runs side by side: returns, costs, and how likely one is above another."""

import json
import textwrap
from typing import NamedTuple

import numpy as np

from gentle_jax import config as config_lib
from gentle_jax import errors, statistics

from . import differences, scores, tables

SAME = ("suite", "env", "physics")  # what runs must share to be compared
NAMED = ("algorithm", "backbone", "fidelity", "preset", "num_steps", "num_seeds")
SEEN = (*NAMED, "protocols")  # of the section `run`: in the table anyway
COLUMNS = (
    "run", "protocol", "test", "95% CI", "normalized", "IQM", "its 95% CI", "train, normalized",
    "spent",
)  # fmt: skip


IMPROVEMENT = (
    "Probability of improvement on test tasks, 95% bootstrap interval; *: the mean returns differ "
    "beyond chance (Welch's t-test, Holm):"
)


class Grid(NamedTuple):
    """A table of a comparison: rows of texts, a heading first."""

    rows: list
    num_left: int  # how many columns hold names


class Legend(NamedTuple):
    """What the runs of a table are: (name, folder, lines of settings) of each."""

    runs: list


def lines(runs):
    """Returns text lines of [(folder, summary)]; raises UserError for what is not comparable."""
    text = []
    for part in parts(runs):
        if isinstance(part, Legend):
            indent = lambda words: [f"    {line}" for line in words]
            each = [[f"{name}: {place}", *indent(words)] for name, place, words in part.runs]
            text += [line for one in each for line in one]
        else:
            text.append(tables.plain_grid(*part) if isinstance(part, Grid) else "\n".join(part))
        text.append("")
    return text[:-1]


def markdown(runs):
    """Returns the same as `lines` in Markdown."""

    def shown(part):
        if isinstance(part, Legend):
            each = [[f"- {n}: `{place}`", *words] for n, place, words in part.runs]
            return "\n".join("\\\n  ".join(one) for one in each)
        return tables.markdown_grid(*part) if isinstance(part, Grid) else "\n\n".join(part)

    return "\n\n".join(map(shown, parts(runs)))


def parts(runs):
    """Returns what is told of [(folder, summary)], in order: Grids, Legends, lists of lines."""
    found = []
    for of, members in grouped(runs).items():
        names = labels(members)
        found.append([", ".join(f"{name} {value}" for name, value in of)])
        found.append(Legend(legend(names, members)))
        found.append(Grid([COLUMNS, *rows(names, members)], 2))
        found += pairs(names, members)
    entries = [entry for _, summary in runs for entry in summary["results"]]
    return [*found, [tables.note(tables.native(entries))]]


def grouped(runs):
    """Returns {what they share: [(folder, summary)]}, a table each; raises UserError for sweeps."""
    groups = {}
    for folder, summary in runs:
        if tables.is_sweep(summary):
            raise errors.UserError(
                f"{folder} is a sweep, whose grid points have a table of their own: pass runs "
                f"without --sweep, or see that table with --run={folder}"
            )
        groups.setdefault(common(folder, summary), []).append((folder, summary))
    return groups


def common(folder, summary):
    """Returns ((name, value), ...): what runs share that are shown in one table."""
    own = tuple((name, summary[name]) for name in SAME)
    given = settings_of(folder).get("tasks")
    tasks = () if given is None else (("tasks", given),)
    return (*own, ("metric", summary["results"][0]["metric"]), *tasks)


def labels(members):
    """Returns a name for each of [(folder, summary)]: what differs between them.

    The algorithm always; runs that are alike in NAMED by the settings that are not as in most of
    them, and by a number where that does not tell them apart.
    """
    summaries = [summary for _, summary in members]
    differ = [
        name for name in NAMED if name == "algorithm" or len({s[name] for s in summaries}) > 1
    ]
    texts = [" ".join(str(s[name]) for name in differ) for s in summaries]
    twice = {text for text in texts if texts.count(text) > 1}
    for text in twice:
        places = [i for i, other in enumerate(texts) if other == text]
        known = [settings_of(members[i][0]) for i in places]
        for i, own in zip(places, known, strict=True):
            texts[i] = " ".join([text, *unusual(own, known)])
    return [f"{t} #{i}" if texts.count(t) > 1 else t for i, t in enumerate(texts, 1)]


def unusual(own, known):
    """Returns `key=value` of the settings in which `own` is not as most of `known` are."""
    shared = lambda key: sum(str(one[key]) == str(own[key]) for one in known) > len(known) / 2
    keys = [key for key in told(own) if differs(key, known) and not shared(key)]
    lasts = [key.split(".")[-1] for key in told(own)]
    short = lambda key: key if lasts.count(key.split(".")[-1]) > 1 else key.split(".")[-1]
    return [f"{short(key)}={own[key]}" for key in keys]


def told(settings):
    """Returns the keys of settings that no column of the table tells, in order."""
    return [key for key in sorted(settings) if key.removeprefix("run.") not in SEEN]


def legend(names, members):
    """Returns (name, folder, lines of the settings in which runs differ) of each run.

    Those in which not all agree where all have them, and those of an algorithm where its runs
    differ: what one method has and another lacks is no difference of the comparison.
    """
    known = [settings_of(folder) for folder, _ in members]
    text = []
    for name, (folder, summary), one in zip(names, members, known, strict=True):
        alike = [
            other
            for other, (_, of) in zip(known, members, strict=True)
            if of["algorithm"] == summary["algorithm"]
        ]
        shown = [key for key in told(one) if differs(key, known) or differs(key, alike)]
        words = "  ".join(f"{key}={one[key]}" for key in shown)
        text.append((name, folder, textwrap.wrap(words, 110)))
    return text


def differs(key, known):
    """Whether all settings of `known` have a key, but not the same value."""
    return all(key in one for one in known) and len({str(one[key]) for one in known}) > 1


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
    """Returns Grids: how likely a row is above a column, for each protocol of two runs or more."""
    metric = members[0][1]["results"][0]["metric"]
    known = {n: scores.of_run(f, metric) for n, (f, _) in zip(names, members, strict=True)}
    grids = []
    for key in dict.fromkeys(key for of in known.values() for key in of):
        task_set, protocol = key.split("/")
        own = {name: of[key] for name, of in known.items() if key in of}
        tasks = {one.shape[1] for one in own.values()}
        if task_set != "test" or len(own) < 2 or len(tasks) > 1:
            continue
        sides = {
            name: differences.Side(one.mean(1), members[0][1]["suite"], task_set, one)
            for name, one in own.items()
        }
        sure = {frozenset(two) for two in differences.apart(sides)[0]}
        cell = lambda a, b, own=own, sure=sure: (
            "-" if a == b else chance(own[a], own[b]) + "*" * ({a, b} in sure)
        )
        grid = [[f"{protocol}: row above column", *own]]
        grid += [[a, *(cell(a, b) for b in own)] for a in own]
        grids.append(Grid(grid, 1))
    if grids:
        grids.insert(0, [IMPROVEMENT])
    return grids


def chance(ours, theirs):
    """Returns the probability of improvement of scores [S, T] and its interval, as text."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return "nan"
    value = statistics.improvement(ours, theirs)
    low, high = statistics.improvement_ci(ours, theirs)
    few = tables.FEW_MARK if min(len(ours), len(theirs)) < tables.FEW else ""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]{few}"
