"""Several processes as one program (`--multihost`), by JAX's distributed runtime.

Every process calls the same commands. The first one, the leader, prints, reads and writes
checkpoints and results; the others hold their devices' share of the runs. They must see the same
`--data`. Without `--multihost` there is one process, and nothing here does anything.
"""

import io
import os
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from gentle_jax import errors

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start():
    """Joins the processes, before JAX is used; all but the leader fall silent.

    Where JAX knows the cluster (TPU slices, SLURM, Open MPI, GKE) it finds the others itself; else
    VARIABLES say where the leader listens (host:port), how many there are, and which this one is.
    """
    given = [os.environ.get(name) for name in VARIABLES]
    if any(given) and not all(given):
        missing = " ".join(n for n, v in zip(VARIABLES, given, strict=True) if not v)
        raise errors.UserError(
            f"--multihost needs {' '.join(VARIABLES)}: {missing} not set; set all of them, or none "
            f"where JAX knows the cluster"
        )
    jax.config.update("jax_enable_preemption_service", False)  # `preemption` has its own handler
    try:
        if all(given):
            jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise errors.UserError(
            f"--multihost: JAX could not join the processes ({errors.first_line(error)}); set "
            f"{' '.join(VARIABLES)}, or leave out --multihost and give each process its own "
            f"--seed_offset"
        ) from None
    if not leader():
        sys.stdout = io.StringIO()


def several():
    """Whether this process is one of several."""
    return jax.process_count() > 1


def joined():
    """Whether this process has joined others; starts no device, unlike `several`."""
    return jax.distributed.is_initialized()


def leader():
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def devices():
    """Returns the devices that runs are split over: of all processes."""
    return jax.devices()


def agree(value):
    """Returns the leader's number."""
    return multihost_utils.broadcast_one_to_all(np.asarray(value)) if several() else value


def any_of(flag):
    """Whether `flag` holds in any process."""
    if not several():
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def share(tree):
    """Returns the leader's tree of numpy arrays; the others pass arrays of the same shapes.

    Leaves have four bytes a number. They go as whole numbers: zeros are added up, and -0 + 0 is 0.
    """
    if not several():
        return tree
    sent = multihost_utils.broadcast_one_to_all(
        jax.tree.map(lambda leaf: leaf.view(np.uint32), tree)
    )
    return jax.tree.map(lambda leaf, new: np.asarray(new).view(leaf.dtype), tree, sent)


def wait_for(done, what):
    """Waits in all but the leader until `done()`; the leader's end would end this process too."""
    if leader():
        return
    while not done():
        print(f"waiting for the first process: {what}", file=sys.stderr, flush=True)
        for _ in range(30):
            if done():
                break
            time.sleep(1.0)
