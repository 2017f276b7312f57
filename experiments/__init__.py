"""Command lines of gentle_jax; the only place that reads arguments."""

import sys

from experiments.host import preemption

if sys.argv[:1] == ["-m"]:  # a command: signals are taken before its imports, which take seconds
    preemption.install()
