"""Importing the library changes nothing: settings and patches belong to commands and programs.

And what it makes public: names that are imported when they are first used.
"""

import pathlib
import subprocess
import sys

import pytest

import gentle_jax
from gentle_jax import training

ROOT = pathlib.Path(__file__).parent.parent
# what third parties do when they are imported is done before the first look
LOOK_IMPORT_LOOK = """
import contextlib, importlib, io, logging, os, pkgutil, sys, warnings
import flax, jax, optax, orbax.checkpoint
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx
    from mujoco.mjx._src import forward, smooth, solver

def look():
    loggers = [logging.getLogger(name) for name in (None, "absl", "jax")]
    return {
        "jax.config": dict(jax.config.values),
        "environment": dict(os.environ),
        "levels": [logger.level for logger in loggers],
        "handlers": [list(logger.handlers) for logger in loggers],
        "warnings": list(warnings.filters),
        "mjx": [dict(vars(module)) for module in (mjx, forward, smooth, solver)],
        "stdout": [sys.stdout, sys.stderr],
    }

before = look()
import gentle_jax
names = [found.name for found in pkgutil.walk_packages(gentle_jax.__path__, "gentle_jax.")]
for name in names:
    if name != "gentle_jax.gymnasium":  # an extra; its library sets filters of warnings
        importlib.import_module(name)
after = look()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
assert len(names) > 40 and "gentle_jax.physics" in names, names
jax.config.update("jax_num_cpu_devices", 3)  # raises once JAX has started
assert jax.device_count() == 3
print("nothing")
"""


def test_importing_every_module_changes_nothing():
    command = [sys.executable, "-c", LOOK_IMPORT_LOOK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("nothing\n", 0), done.stderr


HEAVY = """
import sys
import gentle_jax
names = set(dir(gentle_jax))
assert names == set(gentle_jax.__all__) and "__version__" in names
print([name for name in ("jax", "jaxlib", "flax", "mujoco", "numpy") if name in sys.modules])
"""


def test_importing_the_package_starts_no_library_and_lists_its_names():
    found = subprocess.run([sys.executable, "-c", HEAVY], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


@pytest.mark.parametrize("name", gentle_jax.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gentle_jax, name) is not None


def test_public_names_are_those_of_their_modules():
    assert gentle_jax.Sweep is training.Sweep
    assert gentle_jax.types.Algorithm and gentle_jax.compose.representation
    assert callable(gentle_jax.make_sweep) and issubclass(gentle_jax.UserError, Exception)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="'gentle_jax' has no attribute 'make_swep'"):
        gentle_jax.make_swep  # noqa: B018
