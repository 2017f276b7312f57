"""C MuJoCo behind compiled programs: the simulator of CPUs, mode `mujoco` of `gentle_jax.physics`.

A step leaves the program, runs on the threads of `mujoco.batch`, and comes back: programs compile
in a tenth of the time, because they hold no simulator, and steps with the settings of `reference`
cost less than those of `fast` in MJX (benchmarks/env_step.py). What a simulation gives depends
neither on how many run beside it nor on the number of threads. Between steps only `physics.State`
is kept, in 32 bits, as with MJX. Programs with such steps are not kept in the compile cache.
"""

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Float
from mujoco import batch as c_batch

from gentle_jax.types import HostArray

Rows = Float[HostArray, "N F"]  # a row for each simulation
STATE = ("qpos", "qvel", "qacc_warmstart")  # what a step reads beside the control


def usable() -> bool:
    """Whether programs run where C MuJoCo does: on a CPU."""
    return jax.default_backend() == "cpu"


class Pool:
    """Batches of simulations of one model, each used by one caller at a time."""

    def __init__(self, c_model: mujoco.MjModel) -> None:
        self.model = copy.copy(c_model)
        # what is not finite stays so: the step is not taken, as with MJX
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.free, self.lock = {}, threading.Lock()

    @contextlib.contextmanager
    def take(self, count: int, fields: tuple) -> Iterator[c_batch.Batch]:
        """Yields a Batch of `count` simulations with own values of the fields of these names."""
        with self.lock:
            waiting = self.free.setdefault((count, fields), [])
            batch = waiting.pop() if waiting else None
        if batch is None:
            cores = max((os.cpu_count() or 1) // jax.local_device_count(), 1)
            batch = c_batch.Batch(self.model, count, min(cores, count))
        yield batch  # one that raised is not used again
        with self.lock:
            waiting.append(batch)


def stepper(c_model: mujoco.MjModel, frame_skip: int, torso: int, with_cost: bool) -> Callable:
    """Returns step(fields, qpos, qvel, warmstart, control) -> the same three, torso [3], cost [].

    Of one simulation, to be mapped. Args: c_model, with the options that it has; torso, a body's
    id; with_cost, whether the clipped squared contact forces are added up (slow: one simulation
    after the other).
    """
    pool = Pool(c_model)
    sizes = (c_model.nq, c_model.nv, c_model.nv, 3)
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes]
    shapes.append(jax.ShapeDtypeStruct((), jnp.float32))
    own = {name: np.shape(getattr(c_model, name)) for name in c_batch.MODEL_FIELDS
           if "." not in name}  # fmt: skip

    def step(fields, *state):
        names = tuple(sorted(fields))
        values = tuple(fields[name] for name in names)
        host = lambda values, *state: _host(pool, names, own, values, state, simulate)
        return jax.pure_callback(host, shapes, values, *state, vmap_method="expand_dims")

    def simulate(batch):
        if with_cost:
            return _one_by_one(batch, frame_skip, torso)
        xpos = batch.bind("xpos")
        batch.step(nstep=frame_skip)
        return *(batch.bind(name) for name in STATE), xpos[:, torso], np.zeros(batch.nsim)

    return step


def _host(pool, names, own, values, state, simulate):
    """Steps all simulations of a call. Args: values and state, arrays [..., own shape]."""
    state = [np.asarray(leaf) for leaf in state]
    values = [np.asarray(leaf) for leaf in values]
    tails = [own[name] for name in names] + [leaf.shape[-1:] for leaf in state]
    leads = [
        leaf.shape[: leaf.ndim - len(tail)]
        for leaf, tail in zip(values + state, tails, strict=True)
    ]
    lead = np.broadcast_shapes(*leads)
    count = int(np.prod(lead, dtype=int))
    flat = lambda leaf, tail: np.broadcast_to(leaf, lead + tail).reshape(count, *tail)
    rows = [flat(*each) for each in zip(values + state, tails, strict=True)]
    with pool.take(count, names) as batch:
        for name, leaf in zip(names, rows, strict=False):
            batch.expand(name)[:] = leaf
        for name, leaf in zip((*STATE, "ctrl"), rows[len(names) :], strict=True):
            batch.bind(name)[:] = leaf
        out = simulate(batch)
        return [np.array(leaf, np.float32).reshape((*lead, *leaf.shape[1:])) for leaf in out]


def _one_by_one(batch, frame_skip, torso):
    """Returns what a step of every simulation gives, its contact cost too."""
    results = []
    for number in range(batch.nsim):
        model, data = batch.get_model(number), batch.get_data(number)
        for _ in range(frame_skip):
            mujoco.mj_step(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        cost = np.square(np.clip(data.cfrc_ext, -1.0, 1.0)).sum()
        leaves = *(getattr(data, name) for name in STATE), data.xpos[torso], cost
        results.append([np.array(leaf) for leaf in leaves])
    return [np.stack(leaves) for leaves in zip(*results, strict=True)]
