"""C MuJoCo behind compiled programs: the simulator of CPUs, mode `mujoco` of `gentle_jax.physics`.

A step leaves the program, runs on the threads of `mujoco.batch`, and comes back: programs hold no
simulator, and compile faster (benchmarks/env_step.py). What a simulation gives depends neither on
how many run beside it nor on the number of threads. Between steps only `physics.State` is kept, in
32 bits, as with MJX. Programs with such steps are not kept in the compile cache.

The call is a primitive of our own: `jax.pure_callback` copies its arguments to the device that the
host stands for, from 100 KiB on by the threads that wait for the callbacks, which then wait for
ever where every device is within one.
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
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from mujoco import batch as c_batch

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
        mujoco.set_mju_user_warning(lambda text: None)  # else a line a step into MUJOCO_LOG.TXT

    @contextlib.contextmanager
    def take(self, count: int, fields: tuple) -> Iterator[c_batch.Batch]:
        """Yields a Batch of `count` simulations with own values of the fields of these names."""
        with self.lock:
            waiting = self.free.setdefault((count, fields), [])
            batch = waiting.pop() if waiting else None
        if batch is None:
            batch = c_batch.Batch(self.model, count, min(_cores(), count))
        yield batch  # one that raised is not used again
        with self.lock:
            waiting.append(batch)


def _cores():
    """Returns how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on a Mac
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def stepper(c_model: mujoco.MjModel, frame_skip: int, torso: int, with_cost: bool) -> Callable:
    """Returns step(fields, qpos, qvel, warmstart, control) -> the same three, torso [3], cost [].

    Of one simulation, to be mapped. Args: c_model, with the options that it has; torso, a body's
    id; with_cost, whether the clipped squared contact forces are added up (slow: one simulation
    after the other).
    """
    pool = Pool(c_model)
    sizes = (c_model.nq, c_model.nv, c_model.nv, 3)
    shapes = (*((size,) for size in sizes), ())
    own = {name: np.shape(getattr(c_model, name)) for name in c_batch.MODEL_FIELDS
           if "." not in name}  # fmt: skip

    def step(fields, *state):
        names = tuple(sorted(fields))
        values = tuple(fields[name] for name in names)
        host = lambda *leaves: _host(pool, names, own, leaves, simulate)
        return _call.bind(*values, *state, host=host, shapes=shapes)

    def simulate(batch):
        if with_cost:
            return _one_by_one(batch, frame_skip, torso)
        xpos, lost = batch.bind("xpos"), []
        try:
            batch.step(nstep=frame_skip)
        except c_batch.SimulationError as error:
            lost = error.ids
        qpos, *others = (batch.bind(name) for name in STATE)
        qpos = qpos.copy()
        qpos[lost] = np.nan  # their step is not taken, those of the others are
        return qpos, *others, xpos[:, torso], np.zeros(batch.nsim)

    return step


def _host(pool, names, own, leaves, simulate):
    """Steps all simulations of a call. Args: leaves, the fields' values, then the state."""
    tails = [own[name] for name in names]
    tails += [leaf.shape[-1:] for leaf in leaves[len(names) :]]
    leads = [leaf.shape[: leaf.ndim - len(tail)] for leaf, tail in zip(leaves, tails, strict=True)]
    lead = np.broadcast_shapes(*leads)
    count = int(np.prod(lead, dtype=int))
    flat = lambda leaf, tail: np.broadcast_to(leaf, lead + tail).reshape(count, *tail)
    rows = [flat(*each) for each in zip(leaves, tails, strict=True)]
    with pool.take(count, names) as batch:
        for name, leaf in zip(names, rows, strict=False):
            batch.expand(name)[:] = leaf
        for name, leaf in zip((*STATE, "ctrl"), rows[len(names) :], strict=True):
            batch.bind(name)[:] = leaf
        out = simulate(batch)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is not finite
            return tuple(np.float32(leaf).reshape((*lead, *leaf.shape[1:])) for leaf in out)


_call = Primitive("c_mujoco")
_call.multiple_results = True


@_call.def_abstract_eval
def _shapes(*_, shapes, **__):
    return [jax.core.ShapedArray(shape, jnp.float32) for shape in shapes]


def _lower(ctx, *args, host, shapes):
    """Emits the call. The host gets views, and nothing is copied by threads of the device."""
    del shapes
    avals = ctx.avals_in, ctx.avals_out
    return mlir.emit_python_callback(
        ctx, host, None, args, *avals, has_side_effect=False, returns_token=False
    )[0]


mlir.register_lowering(_call, _lower, platform="cpu", cacheable=False)


def _batch(args, axes, *, host, shapes):
    """Maps over one more axis, the first one: of size 1 where an argument is the same for all."""
    front = lambda x, axis: x[None] if axis is None else jnp.moveaxis(x, axis, 0)
    args = [front(*each) for each in zip(args, axes, strict=True)]
    size = max(x.shape[0] for x in args)
    out = _call.bind(*args, host=host, shapes=tuple((size, *shape) for shape in shapes))
    return out, [0] * len(out)


batching.primitive_batchers[_call] = _batch


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
