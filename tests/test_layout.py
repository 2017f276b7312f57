"""Where code lies: sizes of functions and files, and whose names stand where.

A name of an algorithm belongs to its own file or package and to the registry. Two of them are also
names of suites and one of a data format, so these rules read where a string stands, not only what
it says.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

from gentle_jax import objectives, registry, suites
from gentle_jax.interop import FORMATS

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "gentle_jax").rglob("*.py"))
COMMANDS = sorted((ROOT / "experiments").rglob("*.py"))
NAMES = tuple(registry.ALGORITHMS)
REPORTS = {  # how to make the papers' tables again
    "experiments/runs/comparisons.py",
    "experiments/runs/paper_comparisons.py",
}


def short(path):
    """A file's path from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


def functions(tree):
    """Yields every function of a module."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def docstrings(tree):
    """Yields the nodes of all docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def code_lines(text):
    """Returns how many lines hold code: not blank, no comment, no docstring."""
    quoted = set()
    for node in docstrings(ast.parse(text)):
        quoted |= set(range(node.lineno, node.end_lineno + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped and token.string:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - quoted)


# --- sizes


def test_code_lines_are_what_they_are_said_to_be():
    text = (
        '"""Doc\n\nmore."""\n\nimport a  # why\n\n# note\n\n\ndef f(\n    x,\n):\n    """Doc."""\n'
    )
    assert code_lines(text) == 4  # the import, and three lines of the head
    assert code_lines(text + '    return """\n    text"""\n') == 6


def test_focal_is_short():
    path = ROOT / "gentle_jax/algorithms/focal.py"
    assert code_lines(path.read_text()) <= 25


def test_files_of_ctmrl_have_at_most_250_lines():
    files = sorted((ROOT / "gentle_jax/algorithms/ctmrl").glob("*.py"))
    sizes = {short(path): len(path.read_text().splitlines()) for path in files}
    assert {"paper.py", "release.py", "codebook.py"} <= {path.name for path in files}
    assert {path: size for path, size in sizes.items() if size > 250} == {}


@pytest.mark.parametrize("files", [LIBRARY, COMMANDS], ids=["gentle_jax", "experiments"])
def test_no_file_has_over_400_lines(files):
    sizes = {short(path): len(path.read_text().splitlines()) for path in files}
    assert {path: size for path, size in sizes.items() if size > 400} == {}


def test_no_function_of_the_library_has_over_60_lines():
    long = {}
    for path in LIBRARY:
        for node in functions(ast.parse(path.read_text())):
            size = node.end_lineno - node.lineno + 1
            if size > 60:
                long[f"{short(path)}:{node.name}"] = size
    assert long == {}


# --- names of algorithms


def foreign(tree, name, path=""):
    """Returns the lines where a module names an algorithm that it should not know.

    Forbidden: an import of its module; a dotted key `name.field`, a flag `--algo=name`; the name
    as a string, unless it stands for a suite (`_suite_strings`), in interop for a data format, in
    an algorithm for the term of that name in `objectives`.
    """
    quoted = {id(node) for node in docstrings(tree)}
    allowed = _suite_strings(tree) if name in suites.SUITES else set()
    shared = name in FORMATS and path.startswith("gentle_jax/interop/")
    shared |= hasattr(objectives, name) and path.startswith("gentle_jax/algorithms/")
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            lines += [node.lineno for module in modules if module in _modules(name)]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            lines += [node.lineno for module in modules if module in _modules(name)][:1]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            key = re.search(rf"(^|--config\.|\s){name}\.\w", text) or f"--algo={name}" in text
            exact = text == name and id(node) not in allowed and not shared
            if id(node) not in quoted and (key or exact):
                lines.append(node.lineno)
    return lines


def _modules(name):
    module = registry.ALGORITHMS[name]
    return {module, f"{module}.make", f"{module}.Config"}


def _suite_strings(tree):
    """Returns the ids of strings that stand for a suite.

    Those in the tables SETTINGS, SEEDS and SUITES, the default of something called `suite`, and
    what something called `suite` is compared with.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if targets & {"SETTINGS", "SEEDS", "SUITES"}:
                found += ast.walk(node.value)
        elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "suite":
            found.append(node.value)
        elif isinstance(node, ast.FunctionDef):
            args = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs = zip(args, node.args.defaults, strict=True)
            found += [default for arg, default in pairs if arg.arg == "suite"]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("suite"):
            found += node.comparators
        elif isinstance(node, ast.Tuple) and node.elts and _is(node.elts[0], "suite"):
            found += node.elts[1:]  # the flag of that name
    return {id(node) for node in found}


def _is(node, text):
    return isinstance(node, ast.Constant) and node.value == text


def own(path, name):
    """Whether a file is the algorithm's own: its module, or a file of its package."""
    home = registry.ALGORITHMS[name].replace(".", "/")
    return path == f"{home}.py" or path.startswith(f"{home}/")


@pytest.mark.parametrize("name", NAMES)
def test_only_its_own_files_and_the_registry_know_an_algorithm(name):
    known = {}
    for path in map(short, (*LIBRARY, *COMMANDS)):
        if not own(path, name) and path not in REPORTS | {"gentle_jax/registry.py"}:
            lines = foreign(ast.parse((ROOT / path).read_text()), name, path)
            known |= {path: lines} if lines else {}
    assert known == {}


@pytest.mark.parametrize(
    "text,caught",
    [
        ('if config.run.algorithm == "gentle":\n    pass', True),
        ('if algorithm in ("ctmrl", "gentle"):\n    pass', True),
        ('X = {"gentle": 1}', True),
        ('SETTINGS = {"ctmrl": {"gentle.width": 64}}', True),
        ('X = "--algo=gentle"', True),
        ('LAYER = {"--config.gentle.width": 64}', True),
        ("from gentle_jax.algorithms import gentle", True),
        ("from gentle_jax.algorithms.gentle import Config", True),
        ("import gentle_jax.algorithms.gentle", True),
        ('name: str = "gentle"', True),
        ('"""A text about gentle."""', False),
        ('def f():\n    """gentle.width is what it says."""', False),
        ('SETTINGS = {"gentle": {"algo.width": 64}}', False),
        ('if suite == "gentle" or run.suite == "gentle":\n    pass', False),
        ('suite: str = "gentle"', False),
        ('def f(name, suite="gentle"):\n    pass', False),
        ('FLAG = ("suite", str, "gentle", "help")', False),
        ("import gentle_jax.config", False),
    ],
)
def test_the_rule_about_names_tells_algorithms_from_suites(text, caught):
    assert bool(foreign(ast.parse(text), "gentle")) == caught


def test_a_data_format_and_a_term_may_have_the_name_of_an_algorithm():
    text = ast.parse('X = {"focal": 1}')
    assert foreign(text, "focal", "gentle_jax/interop/__init__.py") == []
    assert foreign(text, "focal", "gentle_jax/algorithms/ctmrl/release.py") == []
    assert foreign(text, "focal", "gentle_jax/config.py") == [1]


def test_every_algorithm_has_its_own_files():
    for name in NAMES:
        assert any(own(short(path), name) for path in LIBRARY), name
