"""Data of other projects: one file per format, each a `read(folder, env, options) -> Table`."""

import importlib
from types import ModuleType

from gentle_jax import errors

FORMATS = {
    "focal": "gentle_jax.interop.focal",
    "corro": "gentle_jax.interop.corro",
    "minari": "gentle_jax.interop.minari",
    "metadt": "gentle_jax.interop.metadt",
    "spc": "gentle_jax.interop.spc",
    "npz": "gentle_jax.interop.npz",
}


def load(name: str) -> ModuleType:
    """Imports the module of a format; raises UserError for an unknown one."""
    if name not in FORMATS:
        raise errors.unknown("format", name, FORMATS)
    return importlib.import_module(FORMATS[name])
