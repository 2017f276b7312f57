"""A table of our own: a row for each command, a column for each protocol and task set."""

from . import differences, tables


def lines(of, summaries, found):
    """Returns the Markdown lines of a Comparison with columns for each environment.

    And which rows differ beyond chance. Args: found, {(row, env): its scores}.
    """
    names = [(env, *column) for env in of.envs for column in of.columns]
    text = ["| " + " | ".join(["row", *(f"{e}, {p}, {t}" for e, p, t in names)]) + " |"]
    text.append("|---" * (len(names) + 1) + "|")
    done = {row for row, _ in summaries}
    for row in (row for row in of.rows if row in done):
        entries = [
            tables.entry(summaries[row, env], protocol, task_set)
            if (row, env) in summaries
            else None
            for env, protocol, task_set in names
        ]
        text.append("| " + " | ".join([row, *map(cell, entries)]) + " |")
    for env in of.envs:
        chosen, own = tables.of_env(summaries, env), tables.of_env(found, env)
        apart = differences.sentences(of.columns, own, chosen)
        text += ["", *[f"{env}:", ""] * (len(of.envs) > 1), *apart] if apart else []
    return text


def cell(entry):
    """Returns a table cell: normalized return, and the mean with half its interval."""
    if entry is None:
        return "-"
    if len(entry["per_seed"]) == 1:
        return f"{entry['normalized']:.3f} ({entry['mean']:.2f})"
    low, high = entry["ci95"]
    half = f"{(high - low) / 2:.2f}{tables.mark(entry)}"
    return f"{entry['normalized']:.3f} ({entry['mean']:.2f} ± {half})"
