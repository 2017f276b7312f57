"""Command lines of gentle_jax; the only place that reads arguments."""

import sys

from experiments.host import graphics, preemption

if sys.argv[:1] == ["-m"]:  # a command: signals are taken before its imports, which take seconds
    preemption.install()
    graphics.set_aside()
