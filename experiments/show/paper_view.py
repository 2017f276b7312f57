"""A table beside a paper's numbers: orders, differences beyond chance, the paper's claims."""

from . import differences, methods, paper_tables, tables

OPEN = "undecided"
CLAIMS = (
    "Verdicts: Welch's t-test, corrected for all claims (Holm). Difference: of the mean returns, "
    "with the 95 % interval of that pair alone. Improvement: the probability that a run of the "
    "first is above one of the second in the same task."
)
SPREADS = {"ci95": "half of the 95 % bootstrap interval over seeds", "std": "std over seeds"}


def lines(table, of, summaries, found):
    """Returns Markdown lines: a table for each environment, and what follows from it.

    Args: of, the Comparison; found, {(row, env): {"<task set>/<protocol>": scores [S, T]}}.
    """
    summaries = {at: with_paper(of, *at, summary) for at, summary in summaries.items()}
    text = []
    for env in (env for env in of.envs if any(at[1] == env for at in summaries)):
        chosen = tables.of_env(summaries, env)
        columns = once(of.columns, chosen)
        same = len(columns) < len(of.columns)
        text += [f"### {env}", "", *["Its training tasks are its test tasks.", ""] * same]
        text += [*grid(columns, of.paper, chosen), ""]
        protocols = [protocol for protocol, _ in columns]
        text += [
            order
            for task_set in dict.fromkeys(task_set for _, task_set in columns)
            for order in methods.orders_of(chosen, task_set, protocols)
        ]
        text += [*differences.sentences(columns, tables.of_env(found, env), chosen), ""]
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


def once(columns, chosen):
    """Returns the columns of a table; where training tasks are the test tasks, each once.

    That with the paper's numbers, which may have either name. Args: chosen, {row: summary} of one
    environment.
    """
    found = []
    for protocol in dict.fromkeys(protocol for protocol, _ in columns):
        both = {
            task_set: [tables.entry(summary, protocol, task_set) for summary in chosen.values()]
            for task_set in tables.TASK_SETS
        }
        if any(None in ones for ones in both.values()) or any(
            a["per_seed"] != b["per_seed"] for a, b in zip(*both.values(), strict=True)
        ):
            return columns
        told = [task_set for task_set, ones in both.items() if any(one["paper"] for one in ones)]
        found.append((protocol, (told or tables.TASK_SETS)[0]))
    return tuple(found)


def grid(columns, kind, chosen):
    """Returns the Markdown lines of one environment's table.

    Args: kind, of spread, a key of SPREADS; chosen, {row: summary}.
    """
    entries = {name: [tables.entry(s, *c) for c in columns] for name, s in chosen.items()}
    told = [
        any(one and one["paper"] for one in each) for each in zip(*entries.values(), strict=True)
    ]
    heading = ["row"]
    for (protocol, task_set), beside in zip(columns, told, strict=True):
        heading += [f"{protocol}, {task_set}", *["paper"] * beside]
    rows = [[*heading, "own protocol", "test"]]
    for name, summary in chosen.items():
        row = [name]
        for one, beside in zip(entries[name], told, strict=True):
            row += [ours(one, kind), *[papers(one)] * beside]
        native = summary["protocols"][0]
        rows.append([*row, f"`{native}`", ours(tables.entry(summary, native, "test"), kind)])
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
                told = [(tables.entry(s, *column) or {}).get("paper") for s in ones]
                by_numbers = all(told) and told[0]["mean"] > told[1]["mean"]
                if claim["env"] == env or (by_numbers and not claim["env"]):
                    places.append((claim, env, task_set))
    return places


def claims(table, of, found, summaries):
    """Returns the Markdown lines of a paper's claims: which hold, which fail, which are open."""
    rows = [["claim", "environment, tasks", "source", "verdict", "difference", "improvement"]]
    pairs, where = [], []
    for claim, env, task_set in claimed(table, of, summaries):
        names = claim["better"], claim["worse"]
        sides = [
            differences.side(
                summaries[row, env], found.get((row, env), {}), claim["protocol"], task_set
            )
            for row in names
        ]
        if None in sides:
            continue
        what, place = f"{names[0]} above {names[1]}", f"{env}, {task_set}, `{claim['protocol']}`"
        chance = differences.improvement(*sides)
        told = "-" if chance is None else f"{chance:.2f}"
        if differences.is_pair(*sides):
            where.append(len(rows))
            pairs.append([one.per_seed for one in sides])
        rows.append([what, place, claim["source"], OPEN, "-", told])
    if len(rows) == 1:
        return []
    for at, (value, (low, high), sure) in zip(where, differences.tests(pairs), strict=True):
        rows[at][4] = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        if sure:
            rows[at][3] = "holds" if value > 0 else "fails"
    counts = {v: sum(row[3] == v for row in rows[1:]) for v in ("holds", "fails", OPEN)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return [f"### Claims: {told}", "", tables.markdown_grid(rows), "", CLAIMS]
