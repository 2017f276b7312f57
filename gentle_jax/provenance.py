"""Which code a result depends on: a hash of sources that comments and layout do not change.

The sources are those of some entries (an algorithm, its backbone, ...) and of every module of their
packages that these import, in turn. Imports are read, not run, also those within functions. Names
in the tables of `registry` are no imports, or every algorithm would depend on all others: the entry
that is chosen is what counts. Versions of other packages are not part of it.
"""

import ast
import hashlib
import importlib.util
import pathlib
from collections.abc import Iterable

from gentle_jax import registry

# what every run goes through, whatever it has chosen
CORE = (
    "gentle_jax.assembly",
    "gentle_jax.config",
    "gentle_jax.data",
    "gentle_jax.evaluation",
    "gentle_jax.learner",
    "gentle_jax.rng",
    "gentle_jax.sweep",
    "gentle_jax.training",
)
COLLECTOR = "gentle_jax.behaviour"
TABLES = "gentle_jax.registry"  # left out: a new entry changes no result
DIGITS = 16


def entries(algorithm: str, backbone: str, env: str, protocols: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the modules that a run is made of, those that they import left out.

    Raises UserError for a name that is not in the registry.
    """
    chosen = [("algorithm", algorithm), ("backbone", backbone), ("environment", env)]
    chosen += [("protocol", name) for name in protocols]
    return (*(registry.name_of(kind, name) for kind, name in chosen), *CORE)


def data_entries(env: str) -> tuple[str, ...]:
    """Returns the names of the modules that collecting an environment's data is made of.

    Raises UserError for a name that is not in the registry.
    """
    return (COLLECTOR, registry.name_of("environment", env))


def source_hash(names: Iterable[str]) -> str:
    """Returns DIGITS hex digits that change when code that the modules `names` run changes.

    A module that is a package counts with all of its submodules. Comments, docstrings, blank lines
    and formatting count for nothing, nor does the version of Python. Raises ModuleNotFoundError.
    """
    total = hashlib.sha256()
    for name, tree in sorted(modules(names).items()):
        total.update(repr((name, _canonical(tree))).encode())
    return total.hexdigest()[:DIGITS]


def modules(names: Iterable[str]) -> dict[str, ast.Module]:
    """Returns {name: syntax tree} of modules and of what they import within their packages.

    A module that is a package counts with all of its submodules. Raises ModuleNotFoundError.
    """
    queue, trees = [], {}
    for name in names:
        path = _path(name)
        if path is None:
            raise ModuleNotFoundError(f"no source of {name}", name=name)
        queue += [name, *_submodules(name, path)]
    packages = {name.partition(".")[0] for name in names}
    while queue:
        name = queue.pop()
        if name in trees or name == TABLES:
            continue
        path = _path(name)
        if path is not None:  # None: an import that works elsewhere, or a folder without code
            trees[name] = ast.parse(path.read_bytes())
            queue += _imports(trees[name], name, path, packages)
    return trees


def _path(name):
    """Returns the source file of a module, or None; imports nothing."""
    top, *parts = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not parts:
        origin = pathlib.Path(spec.origin or "")
        return origin if origin.suffix == ".py" else None
    # a folder without `__init__.py` may lie in several places
    for place in spec.submodule_search_locations or ():
        base = pathlib.Path(place).joinpath(*parts)
        files = (base / "__init__.py", base.with_name(f"{base.name}.py"))
        found = next((path for path in files if path.is_file()), None)
        if found is not None:
            return found
    return None


def _submodules(name, path):
    """Returns the names of all modules in a package, none for a module that is a file."""
    if path.name != "__init__.py":
        return []
    files = [file.relative_to(path.parent).with_suffix("") for file in path.parent.rglob("*.py")]
    inside = [[part for part in file.parts if part != "__init__"] for file in files]
    return [".".join([name, *parts]) for parts in inside if parts]


def _imports(tree, name, path, packages):
    """Yields the names of modules within `packages` that a module imports, anywhere in it.

    Of a top package only what is asked for counts, not all that its `__init__` imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, name, path)
            wanted = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, attribute in wanted:
            if base.partition(".")[0] in packages:
                yield from _resolve(base, attribute, packages)


def _base(node, name, path):
    """Returns the absolute name of the module that a `from ... import` names."""
    if not node.level:
        return node.module
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _resolve(base, attribute, packages):
    """Yields the module behind `from base import attribute`, or `import base` where it is None."""
    if attribute is not None and _path(f"{base}.{attribute}") is not None:
        yield f"{base}.{attribute}"
    elif "." in base:
        yield base
    elif attribute is not None:  # a name that the top package has from one of its modules
        path = _path(base)
        for node in ast.parse(path.read_bytes()).body if path else ():
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if attribute in (alias.asname or alias.name, "*"):
                        yield from _resolve(_base(node, base, path), alias.name, packages)


def _canonical(node):
    """Returns a syntax tree as nested tuples: no positions, no strings that only document.

    Empty fields are left out: which there are depends on the version of Python.
    """
    if isinstance(node, ast.AST):
        fields = [
            (name, _canonical(value))
            for name, value in ast.iter_fields(node)
            if name not in ("kind", "type_comment") and value is not None and value != []
        ]
        return (type(node).__name__, *((name, value) for name, value in fields if value != ()))
    if isinstance(node, list):
        return tuple(_canonical(one) for one in node if not _documents(one))
    return (node,)


def _documents(node):
    """Whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
