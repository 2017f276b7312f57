"""A table of `reproduce` as Markdown: its grid, what follows from it, and what it was made with."""

from ..runs.comparisons import TABLES
from . import column_view, differences, methods, paper_view, recognition, tables

DATA = "data_fingerprint"  # of environment.json


def lines(table, summaries, found):
    """Returns the Markdown lines of a table.

    Args: summaries and found, {(row, env): summary, and scores of `scores.of_run`}.
    """
    of = TABLES[table]
    if of.paper:
        text = paper_view.lines(table, of, summaries, found)
        spread = paper_view.SPREADS[of.paper]
        caption = f"Last checkpoint: mean return ± {spread} (normalized return), and the paper's "
        caption += "own numbers, which are of other data and sizes."
    elif of.columns:
        text = column_view.lines(of, summaries, found)
        caption = "Last checkpoint: normalized return (mean return ± half of the 95 % bootstrap "
        caption += "interval over seeds)."
    else:
        text = methods.lines(summaries, found)
        caption = (
            "Last checkpoint, normalized returns; 95 % bootstrap intervals over seeds; spent: "
        )
        caption += "environment steps/episodes/oracle queries in a tested task before the reported "
        caption += "episode; the paper's column is its own number, from other data and sizes."
    text += ["", *recognition.lines(summaries)] if of.contexts else []
    if any(line.startswith(differences.HEAD) for line in text):
        caption += f" {differences.NOTE}"
    few = any(1 < s["num_seeds"] < tables.FEW for s in summaries.values())
    caption += f" {tables.FEW_NOTE}." if few else ""
    return [*text, "", f"{caption} {conditions(summaries)}. `-`: not run."]


def conditions(summaries):
    """Returns the sizes, backbones and devices of a table's runs, as text."""
    sizes = sorted({(s["num_seeds"], s["num_steps"], s["preset"]) for s in summaries.values()})
    kept = ", ".join(f"{seeds} seeds, {steps} steps, preset {p}" for seeds, steps, p in sizes)
    places = {}  # of each suite and backbone
    for (_, env), s in summaries.items():
        places.setdefault((s["suite"], s["backbone"]), set()).add(env)
    for (suite, backbone), envs in sorted(places.items()):
        where = f" ({', '.join(sorted(envs))})" if len(places) > 1 else ""
        kept += f"; suite {suite}, backbone {backbone}{where}"
    devices = {s["device"] for s in summaries.values() if "device" in s}  # bits depend on them
    kept += "".join(f"; on {device}" for device in sorted(devices))
    return kept + data_of(summaries)


def data_of(summaries):
    """Returns which data the runs of a table learned from, as text; "" where it is not known."""
    known = {}
    for (_, env), s in summaries.items():
        known.setdefault(env, {}).setdefault(s.get(DATA), None)
    parts = []
    for env, of in known.items():
        names = [f"`{one}`" for one in of if one]
        text = " or ".join(names) if len(names) < 3 else f"{len(names)} sets"
        text += " (of some rows not known)" if names and None in of else ""
        parts += [f"{text} ({env})" if len(known) > 1 else text] if names else []
    return f"; data {', '.join(parts)}" if parts else ""
