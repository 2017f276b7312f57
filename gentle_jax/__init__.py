"""gentle_jax: offline meta-reinforcement learning as pure functions over pytrees.

The public names below are imported when they are first used, so that `import gentle_jax` starts
neither JAX nor a simulator. Modules are public too: `gentle_jax.compose`, `gentle_jax.types`, ...
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {  # public name -> module
    "ExperimentConfig": "config",
    "Sweep": "training",
    "UserError": "errors",
    "collect": "assembly",
    "load": "agents",
    "make_config": "assembly",
    "make_env": "assembly",
    "make_sweep": "assembly",
    "register": "registry",
    "task_sets": "assembly",
    "train": "assembly",
    "write_dataset": "interop.npz",
}
_MODULES = (
    "algorithms",
    "backbones",
    "compose",
    "envs",
    "objectives",
    "protocols",
    "registry",
    "types",
)

_EXTRAS = ("gymnasium",)  # modules that need a library which is not among the requirements

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name in _NAMES:
        return getattr(importlib.import_module(f"gentle_jax.{_NAMES[name]}"), name)
    if name in _MODULES or name in _EXTRAS:
        return importlib.import_module(f"gentle_jax.{name}")
    raise AttributeError(f"module 'gentle_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted(__all__)
