"""The pytest plugin of `pytest --pyargs gentle_jax.testing`: its flags, and what is left out.

Nothing happens in any other run of pytest, and nothing heavy is imported in one.
"""

import pathlib
import sys

import pytest

PACKAGE = "gentle_jax.testing"
HERE = pathlib.Path(__file__).parent
KINDS = {  # flag -> kind in the registry; each has one file of tests
    "algo": "algorithm",
    "backbone": "backbone",
    "env": "environment",
    "protocol": "protocol",
}


def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    """Adds the flags where the tests of this package are asked for."""
    folder = early_config.invocation_params.dir
    if not any(_is_ours(folder, str(word)) for word in args):
        return
    group = parser.getgroup("gentle_jax", "contract tests of gentle_jax")
    for flag, kind in KINDS.items():
        text = f"the {kind} to test: its name, or its module's, my_package.my_module"
        group.addoption(f"--{flag}", dest=f"gentle_{flag}", default="", help=text)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # as `python -m` does


def _is_ours(folder, word):
    """Whether a word of the command line names this package, or a file of it."""
    name = word.partition("::")[0]
    if name.startswith("-") or name == __name__:
        return False
    if name == PACKAGE or name.startswith(f"{PACKAGE}."):
        return True
    path = (folder / name).resolve()
    return path == HERE or HERE in path.parents


def names(config: pytest.Config) -> dict[str, str]:
    """Returns {kind: name} of what a run of pytest was given."""
    given = {kind: getattr(config.option, f"gentle_{flag}", "") for flag, kind in KINDS.items()}
    return {kind: name for kind, name in given.items() if name}


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a run without a flag, and names that are no entry, in one line."""
    if not hasattr(config.option, "gentle_algo"):
        return
    if not names(config):
        flags = ", ".join(f"--{flag}" for flag in KINDS)
        raise pytest.UsageError(f"nothing to test: pass one or more of {flags}")
    import jax

    from gentle_jax import errors, registry

    # compiling is nearly all that these tests do: tiny programs need no optimised code
    jax.config.update("jax_disable_most_optimizations", True)
    for kind, name in names(config).items():
        try:
            registry.load(kind, name)
        except errors.UserError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Leaves out the tests of a kind that was not given."""
    kind = collection_path.stem.removeprefix("test_")
    if collection_path.parent == HERE and kind in KINDS.values() and kind not in names(config):
        return True
    return None


@pytest.fixture(scope="session")
def given(request: pytest.FixtureRequest) -> dict[str, str]:
    """The names of the command line: {kind: name}."""
    return names(request.config)
