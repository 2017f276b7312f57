"""The page of results: every committed table, with the command that made it."""

import re

from gentle_jax import storage

HEAD = """# Results

Written by `python -m experiments.reproduce --page=docs/results.md` from the files in `experiments/results`; do not edit.

What these numbers are: sizes of the preset that each table names (`quick`: small networks, few steps, two CPU cores), on data that
our own agents made. They compare methods under equal conditions; they are not the papers' experiments. Numbers of the last checkpoint,
never of the best. [Words](glossary.md), [protocols](methods/protocols.md), [how to make a table](reproduce.md).
"""  # noqa: E501
PAPERS, OURS = "Tables and figures of the papers", "Tables of our own"
USUAL = "quick"  # preset; titles name others
KINDS = {"table": "Table", "fig": "Figure"}
KEPT = ("jax", "jaxlib", "numpy", "mujoco", "mujoco-mjx")


def page(paths, tables, papers, show, can_run):
    """Returns the Markdown of the page: the tables of papers first, then ours.

    Args: paths, of tables' .json files, files of something else are left out; tables and papers,
    {name: Comparison}, of all tables and of those of papers; show, path -> (its Markdown, where its
    figures lie, as seen from the page); can_run, (table, preset, row, environment) -> whether that
    cell's settings fit its tasks.
    """
    found = [(path, storage.read_json(path)) for path in sorted(paths)]
    found = [(path, content) for path, content in found if content.get("table") in tables]
    of_papers = [(path, content) for path, content in found if content["table"] in papers]
    ours = [(path, content) for path, content in found if content["table"] not in papers]
    listed, parts = {}, []
    for group, members in ((PAPERS, of_papers), (OURS, ours)):
        titles = [title_of(path, content, papers) for path, content in members]
        listed[group] = [f"- [{title}](#{anchor(title)})" for title in titles]
        for title, (path, content) in zip(titles, members, strict=True):
            text, figures = show(path)
            pictures = [line for figure in figures for line in (f"![{title}]({figure})", "")]
            parts += ["", f"## {title}", "", *about(content, tables, path), "", *pictures, text]
    contents = ["", f"**{PAPERS}**", "", *listed[PAPERS], *not_run(of_papers, papers, can_run)]
    contents += ["", f"**{OURS}**", "", *listed[OURS]]
    return "\n".join([HEAD.rstrip("\n"), *contents, *parts]) + "\n"


def not_run(members, papers, can_run):
    """Returns the lines on what papers' tables have and no file of [(path, content)] does."""
    ran = {}
    for _, content in members:
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


def about(content, tables, path):
    """Returns the lines that say what a table is and where it comes from."""
    environment = content["environment"]
    versions = ", ".join(f"{n} {environment['versions'][n]}" for n in KEPT)
    made = f"Made by `{content['command']}`. " if "command" in content else ""
    return [
        f"{sentence(tables[content['table']].about)} {made}Files: `experiments/results/{path.name}`"
        f"{' and its .npz' if path.with_suffix('.npz').exists() else ''}; {versions}."
    ]


def sentence(text):
    """Returns a text as a sentence; a question stays one."""
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith("?") else ".")
