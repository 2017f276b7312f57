"""Command lines of gentle_jax; the only place that reads arguments."""

import pathlib
import sys

from gentle_jax import errors

from .host import graphics, preemption

# a command: signals are taken before its imports, which take seconds
if sys.argv[:1] == ["-m"] or pathlib.Path(sys.argv[0]).stem == errors.SCRIPT:
    preemption.install()
    graphics.set_aside()
