"""A table beside a paper's numbers: orders, differences beyond chance, the paper's claims."""

import numpy as np

from gentle_jax import statistics

from . import methods, paper_tables, scores, tables

OPEN = "undecided"
MOST = 12  # differences that are listed
SPREADS = {"ci95": "half of the 95 % bootstrap interval over seeds", "std": "std over seeds"}


def lines(table, of, summaries, found):
    """Returns Markdown lines: a table for each environment, and what follows from it.

    Args: of, the Comparison; found, {(row, env): {"<task set>/<protocol>": scores [S, T]}}.
    """
    summaries = {at: with_paper(of, *at, summary) for at, summary in summaries.items()}
    text = []
    for env in (env for env in of.envs if any(at[1] == env for at in summaries)):
        chosen = {name: summary for (name, at), summary in summaries.items() if at == env}
        own = {name: found.get((name, env), {}) for name in chosen}
        text += [f"### {env}", "", *grid(of, chosen), ""]
        orders = [order for task_set in tables.TASK_SETS for order in methods.orders_of(
            chosen, task_set)]  # fmt: skip
        text += [*orders, *differences(of, own, chosen), ""]
    text += claims(table, of, found, summaries)
    return text


def with_paper(of, row, env, summary):
    """Returns a summary with the paper's numbers only where they are of this row."""
    if row in of.paper_of:
        table, own = of.paper_of[row]
        own = own | {"env": env}
        number = lambda entry: paper_tables.match(
            table, own | {name: entry[name] for name in ("protocol", "task_set")}
        )
    elif of.paper_rows is None or row in of.paper_rows:
        return summary
    else:
        number = lambda entry: None
    results = [entry | {"paper": number(entry)} for entry in summary["results"]]
    return summary | {"results": results}


def grid(of, chosen):
    """Returns the Markdown lines of one environment's table. Args: chosen, {row: summary}."""
    entries = {name: [methods.entry(s, *c) for c in of.columns] for name, s in chosen.items()}
    told = [
        any(one and one["paper"] for one in each) for each in zip(*entries.values(), strict=True)
    ]
    heading = ["row"]
    for (protocol, task_set), beside in zip(of.columns, told, strict=True):
        heading += [f"{protocol}, {task_set}", *["paper"] * beside]
    rows, kind = [[*heading, "own protocol", "test"]], of.paper
    for name, summary in chosen.items():
        row = [name]
        for one, beside in zip(entries[name], told, strict=True):
            row += [ours(one, kind), *[papers(one)] * beside]
        native = summary["protocols"][0]
        rows.append([*row, f"`{native}`", ours(methods.entry(summary, native, "test"), kind)])
    return [tables.markdown_grid(rows)]


def ours(one, kind):
    """Returns an entry as text: mean, spread, normalized return."""
    if one is None:
        return "-"
    low, high = one["ci95"]
    spread = {"ci95": (high - low) / 2, "std": one["std"]}[kind]
    return f"{one['mean']:.2f} ± {spread:.2f}{tables.mark(one)} ({one['normalized']:.2f})"


def papers(one):
    """Returns the paper's number as text."""
    cell = one and one["paper"]
    return f"{cell['mean']:.2f} ± {cell['spread']:.2f}" if cell else "-"


def differences(of, own, chosen):
    """Returns a sentence for each column: which pairs of rows differ beyond chance.

    Args: own, {row: scores}; chosen, {row: summary}. Rows of different suites are no pairs: their
    tasks differ.
    """
    sentences = []
    for protocol, task_set in of.columns:
        key = f"{task_set}/{protocol}"
        rows = [name for name, known in own.items() if key in known]
        pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
        pairs = [
            (a, b)
            for a, b in pairs
            if comparable(own[a][key], own[b][key]) and chosen[a]["suite"] == chosen[b]["suite"]
        ]
        if not pairs:
            continue
        tests = [scores.two_sided(own[a][key], own[b][key]) for a, b in pairs]
        beyond = []
        for (a, b), (value, _, _), sure in zip(
            pairs, tests, statistics.holm([p for *_, p in tests]), strict=True
        ):
            if sure:
                above, below, share = (a, b, value) if value > 0.5 else (b, a, 1.0 - value)
                beyond.append((share, f"{above} above {below} ({share:.2f})"))
        surest = sorted(beyond, key=lambda pair: -pair[0])[:MOST]
        shown = "; ".join(text for _, text in surest) or "none"
        shown += f"; and {len(beyond) - MOST} more" if len(beyond) > MOST else ""
        sentences.append(
            f"- Beyond chance, `{protocol}`, {task_set} tasks, {len(beyond)} of {len(pairs)} "
            f"pairs (probability of improvement, Holm): {shown}."
        )
    return sentences


def comparable(a, b):
    """Whether scores are enough to compare: finite, of the same tasks, of five seeds or more."""
    enough = min(len(a), len(b)) >= tables.FEW and a.shape[1] == b.shape[1]
    return bool(enough and np.isfinite(a).all() and np.isfinite(b).all())


def claims_of(table):
    """Returns the claims of a paper about a table: dicts, as `experiments/papers/claims.csv`."""
    return [row for row in paper_tables.rows("claims") if row["table"] == table]


def claimed(table, of, summaries):
    """Returns [(claim, env, task set)]: where a paper says that a row is above another one.

    That is where its numbers say so, or, for what it only shows in a figure, in the environment of
    that figure.
    """
    places = []
    for claim in claims_of(table):
        for env in of.envs:
            for task_set in (task_set for p, task_set in of.columns if p == claim["protocol"]):
                column = claim["protocol"], task_set
                ones = [summaries.get((claim[side], env)) for side in ("better", "worse")]
                if None in ones:
                    continue
                told = [(methods.entry(s, *column) or {}).get("paper") for s in ones]
                by_numbers = all(told) and told[0]["mean"] > told[1]["mean"]
                if claim["env"] == env or (by_numbers and not claim["env"]):
                    places.append((claim, env, task_set))
    return places


def claims(table, of, found, summaries):
    """Returns the Markdown lines of a paper's claims: which hold, which fail, which are open."""
    rows = [["claim", "environment, tasks", "source", "verdict", "probability of improvement"]]
    tests, where = [], []
    for claim, env, task_set in claimed(table, of, summaries):
        key = f"{task_set}/{claim['protocol']}"
        sides = [found.get((claim[side], env), {}).get(key) for side in ("better", "worse")]
        if all(side is not None for side in sides) and comparable(*sides):
            where.append(len(rows))
            tests.append(scores.two_sided(*sides))
        what = f"{claim['better']} above {claim['worse']}"
        place = f"{env}, {task_set}, `{claim['protocol']}`"
        rows.append([what, place, claim["source"], OPEN, "-"])
    if len(rows) == 1:
        return []
    sure = statistics.holm([p for *_, p in tests])
    for index, (value, (low, high), _), certain in zip(where, tests, sure, strict=True):
        verdict = ("holds" if value > 0.5 else "fails") if certain else OPEN
        rows[index][3:] = [verdict, f"{value:.2f} [{low:.2f}, {high:.2f}]"]
    counts = {v: sum(row[3] == v for row in rows[1:]) for v in ("holds", "fails", OPEN)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return [f"### Claims: {told}", "", tables.markdown_grid(rows)]
