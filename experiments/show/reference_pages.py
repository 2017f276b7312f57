"""Pages that are generated from code: `python -m experiments.show.reference_pages` writes them.

docs/api.md has signatures and docstrings of public names, docs/flags.md the `--help` of commands.
"""

import ast
import importlib
import inspect
import pathlib
import re

import gentle_jax

from .. import __main__ as listing
from ..cli import command

DOCS = pathlib.Path(__file__).parents[2] / "docs"
WRITTEN = "Written by `python -m experiments.show.reference_pages`; do not edit."
MODULES = ("types", "compose", "objectives", "registry")  # those with names of their own


def flags_page():
    """Returns the Markdown of docs/flags.md."""
    parts = [f"# Flags\n\n{WRITTEN} What the commands are for: [commands](commands.md)."]
    for name in listing.NAMES:
        parts.append(f"## {name}\n\n```text\n{command.help_text(listing.load(name))}\n```")
    return "\n\n".join(parts) + "\n"


def api_page():
    """Returns the Markdown of docs/api.md."""
    links = "Letters in shapes: [axes](glossary.md#axes). In use: [in Python](python.md)."
    parts = [f"# Python API\n\n{WRITTEN} {links}", "## gentle_jax"]
    public = {name: getattr(gentle_jax, name) for name in gentle_jax.__all__}
    for name, value in public.items():
        parts += entry(f"gentle_jax.{name}", value) if is_code(value) else []
    parts += ["### Modules", "\n".join(module_lines(public.values()))]
    agent = importlib.import_module("gentle_jax.agents").Agent
    parts += ["## Agent", doc(agent)]
    for name, value in vars(agent).items():
        public_method = inspect.isfunction(value) and not name.startswith("_")
        parts += entry(f"Agent.{name}", value) if public_method else []
    parts += [
        "## gentle_jax.gymnasium",
        "Needs Gymnasium, the extra `gym`: [Gymnasium](gymnasium.md).",
    ]
    for name in ("make", "make_vector"):
        parts += entry(f"gymnasium.{name}", getattr(gentle_jax.gymnasium, name))
    for name in MODULES:
        parts += module_parts(public[name])
    return "\n\n".join(parts) + "\n"


def is_code(value):
    """Whether a value is a function or a class."""
    return inspect.isfunction(value) or inspect.isclass(value)


def module_lines(values):
    """Returns a line for each module among some values: its name and what it is."""
    first = lambda module: inspect.getdoc(module).partition("\n\n")[0].replace("\n", " ")
    return [f"- `{m.__name__}`: {first(m)}" for m in values if inspect.ismodule(m)]


def module_parts(module):
    """Returns the parts of a module: docstring, names in its annotations, functions, classes."""
    short = module.__name__.rpartition(".")[2]
    parts = [f"## {module.__name__}", doc(module)]
    lines = aliases(module)
    if lines:
        parts += ["Names in annotations:", fenced("\n".join(lines))]
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "") == module.__name__
        if own and is_code(value) and not name.startswith("_"):
            parts += entry(f"{short}.{name}", value)
    return parts


def aliases(module):
    """Returns the lines of a module that name types, `State = PyTree` for instance."""
    source, found = inspect.getsource(module), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and re.match(r"[A-Z]\w*[a-z]", node.targets[0].id):
            found += source.splitlines()[node.lineno - 1 : node.end_lineno]
    return found


def entry(title, value):
    """Returns the parts of one name: heading, declaration, docstring."""
    return [f"### {title}", fenced(declaration(value)), doc(value)]


def declaration(value):
    """Returns the head of a function, or head and fields of a class, as the source has them."""
    source = inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(value)))
    lines, (node,) = source.splitlines(), ast.parse(source).body
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]  # to the docstring
    if inspect.isfunction(value):
        return "\n".join(head).removesuffix(":")
    fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
    if not fields:
        return "\n".join(head).removesuffix(":")
    first, last = node.body[0].end_lineno, fields[-1].end_lineno
    while last < len(lines) and lines[last].lstrip().startswith("#"):
        last += 1
    return "\n".join([*head, *"\n".join(lines[first:last]).strip("\n").splitlines()])


def doc(value):
    """Returns a docstring, fenced where its layout says something."""
    text = inspect.cleandoc(value.__doc__ or "")
    return fenced(text, "text") if re.search(r"^ {2}", text, re.M) else text


def fenced(text, language="python"):
    """Returns a block of code."""
    return f"```{language}\n{text}\n```"


PAGES = {"api.md": api_page, "flags.md": flags_page}

if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (DOCS / file_name).write_text(page())
