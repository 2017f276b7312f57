"""What a machine can check of documentation: signatures, citations, names of machines."""

import ast
import io
import pathlib
import re
import tokenize

import jax.numpy as jnp
import jaxtyping
import pytest

from gentle_jax import cholesky

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("gentle_jax", "experiments", "benchmarks", "tests", "docs")

KINDS = {".py", ".md", ".cfg", ".toml", ".txt", ".json", ".csv", ".html", ".js", ""}
WRITTEN = {"grid.md", "components.md"}  # files that commands write
HOSTS = {
    "arxiv.org", "creativecommons.org", "doi.org", "github.com", "json-schema.org",
    "keepachangelog.com", "matplotlib.org", "openreview.net", "pypi.org", "purl.org",
    "semver.org", "www.apache.org", "www.w3.org",
}  # fmt: skip


def files():
    """Returns every text file of the repository."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    named = [ROOT / ".ci" / "run", *ROOT.iterdir(), *inside]
    return sorted(
        path
        for path in named
        if path.is_file()
        and path.suffix in KINDS
        and path.name != ".git"
        and "__pycache__" not in path.parts
    )


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def names(check, suffixes):
    """Returns the names of files that a check applies to."""
    return [name_of(path) for path in files() if path.suffix in suffixes]


# --- signatures


def unannotated(source):
    """Returns the public functions and methods of a module that lack an annotation."""
    missing = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and is_public(inner.name):
                    static = any(
                        getattr(d, "id", "") == "staticmethod" for d in inner.decorator_list
                    )
                    missing += incomplete(inner, f"{node.name}.{inner.name}", 0 if static else 1)
        elif isinstance(node, ast.FunctionDef) and is_public(node.name):
            missing += incomplete(node, node.name, 0)
    return missing


def is_public(name):
    return not name.startswith("_") or name in ("__init__", "__call__", "__enter__", "__exit__")


def incomplete(function, name, skipped):
    """Returns [name] of a function with an argument or a result without annotation, else []."""
    spec = function.args
    arguments = [*spec.posonlyargs, *spec.args][skipped:] + spec.kwonlyargs
    arguments += [argument for argument in (spec.vararg, spec.kwarg) if argument is not None]
    complete = function.returns is not None and all(a.annotation is not None for a in arguments)
    return [] if complete else [name]


def is_library(name):
    """Whether a file is the library's: its contract tests are tests."""
    return name.startswith("gentle_jax/") and not name.startswith("gentle_jax/testing/test_")


@pytest.mark.parametrize("name", [n for n in names("signatures", {".py"}) if is_library(n)])
def test_public_functions_are_annotated(name):
    missing = unannotated((ROOT / name).read_text())
    assert not missing


def test_signatures_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="matrix"):
        cholesky.cho_factor(jnp.zeros((2, 3)))


def test_a_missing_annotation_is_found():
    source = """
def whole(a: int, *b: int, c: int = 1, **d: int) -> None: ...
def no_result(a: int): ...
def no_argument(a) -> None: ...
def no_keyword(*, a) -> None: ...
def no_star(*a) -> None: ...
def _private(a): ...
class Public:
    def __init__(self, a): ...
    def method(self, a: int) -> None: ...
    def bare(self): ...
    def _private(self, a): ...
    @classmethod
    def of(cls) -> None: ...
    @staticmethod
    def static(a) -> None: ...
class _Private:
    def method(self, a): ...
"""
    assert unannotated(source) == [
        "no_result", "no_argument", "no_keyword", "no_star", "Public.__init__", "Public.bare",
        "Public.static",
    ]  # fmt: skip


# --- links


def anchors(path):
    """Returns the anchors of a Markdown file's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", names("links", {".md"}))
def test_links_lead_somewhere(name):
    place = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", place.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (place.parent / file).resolve() if file else place
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_linked():
    pages = set((ROOT / "docs").rglob("*.md"))
    linked = {
        (place.parent / link.partition("#")[0]).resolve()
        for place in [ROOT / "README.md", *pages]
        for link in re.findall(r"\]\(([^)\s]+)\)", place.read_text())
    }
    assert pages <= linked


# --- citations

# notes that the project began with and does not have, and numbers of their sections
NOTES = re.compile(r"(?<![a-z])[s]heets?(?![a-z])|\bsec[.] ?\d+", re.I)
CITED = re.compile(r'([\w./-]*\w\.md)((?:(?:,| and|, and) "[^"]+")*)')
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\.\w+")
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)


def prose(path, source):
    """Returns the documentation in a file, line breaks left out: Markdown, docstrings, comments."""
    if path.suffix != ".py":
        return [" ".join(re.sub(r"^```.*?^```$", "", source, flags=re.S | re.M).split())]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    comments, last = [], None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#")
            if last == token.start[0] - 1:
                comments[-1] += text
            else:
                comments.append(text)
            last = token.start[0]
    return [" ".join(text.split()) for text in texts + comments]


def headings(path):
    return HEADING.findall(re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M))


def slug(heading):
    """Returns the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def missing_citations(path, source):
    """Returns what a file cites and the repository does not have."""
    places = (ROOT, path.parent) if path.suffix == ".md" else (ROOT,)
    wrong = [match[0] for match in NOTES.finditer(source)] if path.suffix == ".py" else []
    for text in prose(path, source):
        for cited, quoted in CITED.findall(text):
            there = [place / cited for place in places if (place / cited).is_file()]
            if not there and cited not in WRITTEN:
                wrong.append(cited)
            wrong += [
                f"{cited}, {heading}"
                for heading in re.findall('"([^"]+)"', quoted if there else "")
                if heading not in headings(there[0])
            ]
        wrong += [
            cited
            for cited in PATH.findall(text)
            if not (ROOT / cited).exists() and not cited.endswith("/x.py")  # x stands for any
        ]
    if path.suffix == ".md":
        for target, anchor in LINK.findall(source):
            page = path.parent / target if target else path
            if "://" not in target and not page.exists():
                wrong.append(target)
            elif anchor and page.suffix == ".md" and anchor not in map(slug, headings(page)):
                wrong.append(f"{target}#{anchor}")
    return sorted(set(wrong))


@pytest.mark.parametrize("name", names("citations", {".py", ".md"}))
def test_what_is_cited_is_in_the_repository(name):
    missing = missing_citations(ROOT / name, (ROOT / name).read_text())
    assert not missing


def test_a_wrong_citation_is_found():
    code = '''
"""Of docs/methods/focal.md, "Idea" and
"No heading", other_page.md; grid.md is written by a command."""
# docs/methods/nowhere.md is cited
# over two lines, benchmarks/nothing.py too
x = "docs/methods/strings_are_no_citations.md"
'''
    found = missing_citations(ROOT / "gentle_jax" / "x.py", code)
    assert found == [
        "benchmarks/nothing.py", "docs/methods/focal.md, No heading", "docs/methods/nowhere.md",
        "other_page.md",
    ]  # fmt: skip
    notes = ["se" + "c. 31", "she" + "et"]  # in one piece this file would cite them
    assert (
        missing_citations(ROOT / "x.py", f"def as_the_{notes[1]}_says(): 0  # {notes[0]}") == notes
    )
    page = "[a](backbones.md#td3bc) [b](backbones.md#none) [c](#idea) [d](none.md) `focal.md`"
    page = ROOT / "docs" / "methods" / "focal.md", page
    assert missing_citations(*page) == ["backbones.md#none", "none.md"]


# --- machines


def machine_names(text):
    """Returns what belongs to one machine: folders of a user, hosts, options of a package index."""
    mine = {str(ROOT), str(pathlib.Path.home())}
    mine = [path for path in mine if len(pathlib.Path(path).parts) > 2 and path in text]
    folder = re.compile(r"(?<![\w.~}$/-])/(?:home|root|Users|work|workspace|mnt|tmp)/\w+")
    hosts = re.findall(r"https?://([\w.-]+)", text)
    index = re.findall(r"--(?:extra-)?index-url|--find-links|--trusted-host", text)
    address = re.findall(r"(?<![\w.])(?!127\.0\.0\.1)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])", text)
    return [*mine, *folder.findall(text), *(h for h in hosts if h not in HOSTS), *index, *address]


def test_no_file_names_a_machine():
    texts = {path: path.read_text() for path in files() if path != pathlib.Path(__file__)}
    found = {name_of(path): machine_names(text) for path, text in texts.items()}
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_names_of_a_machine_are_found():
    text = "see /home/me, http://10.1.2.3/x, https://index.local/simple, --index-url, 127.0.0.1"
    wrong = ["/home/me", "10.1.2.3", "index.local", "--index-url", "10.1.2.3"]
    assert machine_names(text) == wrong
    assert not machine_names("data/home/me, $HOME/work, https://github.com/a, 1.2.3")
