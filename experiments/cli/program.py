"""Where the commands lie: in a checkout in `experiments`, installed in `gentle_jax.experiments`."""

import pathlib

import gentle_jax

PACKAGE = __package__.rpartition(".")[0]
ROOT = pathlib.Path(gentle_jax.__file__).parents[1]  # from where a new process can import PACKAGE


def words(name):
    """Returns the words of a command for a shell or a job file: python -m PACKAGE.name."""
    return ["python", "-m", f"{PACKAGE}.{name}"]
