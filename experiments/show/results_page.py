"""The page of results: every committed table, with the command that made it."""

from gentle_jax import storage

HEAD = """# Results

Written by `python -m experiments.reproduce --page=docs/results.md` from the files in `experiments/results`; do not edit.

What these numbers are: sizes of the preset that each table names (`quick`: small networks, few steps, two CPU cores), on data that
our own agents made. They compare methods under equal conditions; they are not the papers' experiments. Numbers of the last checkpoint,
never of the best. [Words](glossary.md), [protocols](methods/protocols.md), [how to make a table](reproduce.md).
"""  # noqa: E501
KEPT = ("jax", "jaxlib", "numpy", "mujoco", "mujoco-mjx")


def page(paths, tables, show):
    """Returns the Markdown of the page.

    Args: paths, of tables' .json files; tables, {name: Comparison}; show, path -> its Markdown.
    Files of something else are left out.
    """
    parts, contents = [HEAD], []
    for path in sorted(paths):
        content = storage.read_json(path)
        if content.get("table") not in tables:
            continue
        title = path.stem.replace("_", " ")
        contents.append(f"- [{title}](#{path.stem.replace('_', '-')})")
        parts.append("\n".join([f"## {title}", "", *about(content, tables, path), "", show(path)]))
    return "\n".join([parts[0], *contents, *(f"\n{part}" for part in parts[1:])]) + "\n"


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
