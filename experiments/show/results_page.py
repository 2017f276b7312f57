"""The page of results: every committed table, with the command that made it."""

import re

import numpy as np

from gentle_jax import storage

from ..runs import outputs
from . import differences, tables

HEAD = """# Results

Written by `python -m experiments.reproduce --page=docs/results.md` from the files in `experiments/results`; do not edit.

What these numbers are: sizes of the preset that each table names (`quick`: small networks, few steps, two CPU cores), on data that
our own agents made. They compare methods under equal conditions; they are not the papers' experiments. Numbers of the last checkpoint,
never of the best. [Words](glossary.md), [protocols](methods/protocols.md), [how to make a table](reproduce.md).
"""  # noqa: E501
PAPERS, OURS = "Tables and figures of the papers", "Tables of our own"
USUAL = "quick"  # preset; titles name others
LEADERS = (
    "Which method is best, on test tasks, by normalized return. A method that is not below the "
    "best one beyond chance (Welch's t-test, corrected for all pairs of the table) may be as good:"
)
KINDS = {"table": "Table", "fig": "Figure"}
KEPT = ("jax", "jaxlib", "numpy", "mujoco", "mujoco-mjx")


def page(paths, every, papers, show, can_run):
    """Returns the Markdown of the page: the tables of papers first, then ours.

    Args: paths, of tables' .json files, files of something else are left out; every and papers,
    {name: Comparison}, of all tables and of those of papers; show, path -> (its Markdown, where its
    figures lie, as seen from the page); can_run, (table, preset, row, environment) -> whether that
    cell's settings fit its tasks.
    """
    found = [(path, storage.read_json(path)) for path in sorted(paths)]
    found = [
        (path, content, title_of(path, content, papers))
        for path, content in found
        if content.get("table") in every
    ]
    of_papers = [member for member in found if member[1]["table"] in papers]
    ours = [member for member in found if member[1]["table"] not in papers]
    listed, parts = {}, []
    for group, members in ((PAPERS, of_papers), (OURS, ours)):
        listed[group] = [f"- [{title}](#{anchor(title)})" for *_, title in members]
        for path, content, title in members:
            text, figures = show(path)
            pictures = [line for figure in figures for line in (f"![{title}]({figure})", "")]
            parts += ["", f"## {title}", "", *about(content, every, path), "", *pictures, text]
    contents = leaders(of_papers, papers)
    contents += ["", f"**{PAPERS}**", "", *listed[PAPERS], *not_run(of_papers, papers, can_run)]
    contents += ["", f"**{OURS}**", "", *listed[OURS]]
    return "\n".join([HEAD.rstrip("\n"), *contents, *parts]) + "\n"


def leaders(members, papers):
    """Returns the lines on which method is best: of papers' tables that compare methods.

    Args: members, [(path, content, title)] of them; papers, {name: Comparison}.
    """
    rows = [["table", "suite, backbone", "protocol", "best", "may be as good", "below it"]]
    for _, content, title in members:
        of, envs = papers[content["table"]], dict.fromkeys(c["env"] for c in content["cells"])
        if of.contexts or not of_methods(of):
            continue
        for env in envs:
            chosen = {c["row"]: outputs.with_nan(c) for c in content["cells"] if c["env"] == env}
            one = next(iter(chosen.values()))
            place = f"{one['suite']}, {one['backbone']}"
            for protocol in (protocol for protocol, task_set in of.columns if task_set == "test"):
                told = best(chosen, protocol)
                name = f"[{title}](#{anchor(title)})"
                rows += [[name, place, f"`{protocol}`", *told]] if told else []
    if len(rows) == 1:
        return []
    return ["", LEADERS, "", tables.markdown_grid(rows)]


def of_methods(of):
    """Whether each row of a Comparison is another algorithm, and nothing else."""
    return all(flags[:1] == (f"--algo={row}",) for row, flags in of.rows.items())


def best(chosen, protocol):
    """Returns texts: the best of {row: cell}, those that may be as good, those that are not.

    None where no row has finite results. Pairs are those of the table, and corrected for all.
    """
    runs = {row: tables.entry(cell, protocol, "test") for row, cell in chosen.items()}
    runs = {row: one for row, one in runs.items() if one and np.isfinite(one["mean"])}
    if not runs:
        return None
    first, *others = sorted(runs, key=lambda row: -runs[row]["mean"])
    shown = lambda row: f"{row} {runs[row]['normalized']:.2f}{tables.mark(runs[row])}"
    pairs, _ = differences.apart(differences.sides(chosen, {}, protocol, "test"))
    below = {other for above, other in pairs if above == first}
    groups = [row for row in others if row not in below], [row for row in others if row in below]
    return [shown(first), *(", ".join(map(shown, group)) or "-" for group in groups)]


def not_run(members, papers, can_run):
    """Returns the lines on what papers' tables have and none of [(path, content, title)] does."""
    ran = {}
    for _, content, _ in members:
        for cell in content["cells"]:
            rows = ran.setdefault((content["table"], cell["env"]), {})
            rows[cell["row"]] = cell["preset"]
    lines = []
    for name, of in papers.items():
        parts = []
        for env in of.envs:
            there = ran.get((name, env), {})
            preset = next(iter(there.values()), None)
            rows = [row for row in of.rows if row not in there]
            rows = [row for row in rows if not there or can_run(name, preset, row, env)]
            if rows:
                parts.append(f"{env} ({', '.join(rows)})" if there else env)
        lines += [f"- `{name}`: {', '.join(parts)}"] if parts else []
    return ["", "Not run yet (rows, where others are there):", "", *lines] if lines else []


def title_of(path, content, papers):
    """Returns the heading of a table: `CTMRL, Table 1: point_robot`, or our name for it."""
    table = content["table"]
    preset = content["cells"][0]["preset"]
    rest = path.stem.removeprefix(f"{table}_").removesuffix(f"_{preset}")
    rest += "" if preset == USUAL else f", {preset}"
    if table not in papers:
        return f"{table}: {rest}"
    paper, _, what = table.partition("_")
    kind = what.rstrip("0123456789")
    return f"{paper.upper()}, {KINDS[kind]} {what.removeprefix(kind)}: {rest}"


def anchor(title):
    """Returns the anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def about(content, every, path):
    """Returns the lines that say what a table is and where it comes from."""
    environment = content["environment"]
    versions = ", ".join(f"{n} {environment['versions'][n]}" for n in KEPT)
    made = ""
    if "command" in content:  # files of older versions have it without the preset, or not at all
        preset = f"--preset={content['cells'][0]['preset']}"
        command = content["command"].replace("--preset=auto", preset)
        made = f"Made by `{command if '--preset' in command else f'{command} {preset}'}`. "
    rest = "" if path.with_suffix(".npz").exists() else ", which has each seed's mean return only"
    return [
        f"{sentence(every[content['table']].about)} {made}Files: `experiments/results/{path.name}`"
        f"{rest or ' and its .npz'}; {versions}."
    ]


def sentence(text):
    """Returns a text as a sentence; a question stays one."""
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith("?") else ".")
