"""Rigid-body physics: the only module that calls MJX.

Models are the MJCF files that the brax package ships, adjusted in code; C MuJoCo's model is kept
beside the MJX one, as the oracle of tests and for rendering. Three modes: `reference`, the papers'
integrator with the solver limits of the files (4 Newton iterations, 50 line-search steps); `fast`,
semi-implicit Euler without implicit damping, 1 iteration and 4 line-search steps; and `mujoco`, the
settings of `reference` in C MuJoCo (`host_physics`), on CPUs only. Source:
docs/methods/environments.md, "Physics".

Between steps only what the next step reads is kept (`State`); a step makes MJX's `Data` anew from
it. Carrying all of `Data` through loops is six times slower to compile and three times slower to
run.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import pathlib
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float

from gentle_jax import cholesky, errors, host_physics
from gentle_jax.types import HostArray, Task, pytree

with contextlib.redirect_stdout(io.StringIO()):  # it prints that the optional warp is absent
    from mujoco import mjx
    from mujoco.mjx._src import forward as mjx_forward
    from mujoco.mjx._src import smooth as mjx_smooth
    from mujoco.mjx._src import solver as mjx_solver

MJX_MODES = ("reference", "fast")
MODES = (*MJX_MODES, "mujoco")  # the published one first, that of CPUs last
FAST_ITERATIONS, FAST_LS_ITERATIONS = 1, 4
# Constants that `mj_setConst` derives from masses and that MJX reads. The releases write only the
# randomised fields, which leaves these at the values of the unchanged model.
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0")
FACTORING = (mjx_forward, mjx_smooth, mjx_solver)  # MJX's modules that factor matrices

Fields = dict[str, Array | HostArray]  # of an mjx.Model: those that one task replaces


def _for_cpu(name):
    """Returns a function that calls `gentle_jax.cholesky` on a CPU, and elsewhere JAX's SciPy."""
    theirs, ours = getattr(jax.scipy.linalg, name), getattr(cholesky, name)
    return lambda *args: (ours if jax.default_backend() == "cpu" else theirs)(*args)


def _jax_without_lapack():
    """Returns a stand-in for the module `jax` with the Cholesky functions of `_for_cpu`."""
    linalg = types.SimpleNamespace(
        cho_factor=_for_cpu("cho_factor"), cho_solve=_for_cpu("cho_solve")
    )
    stand_in = types.ModuleType("jax")
    stand_in.__getattr__ = lambda name: getattr(jax, name)
    stand_in.scipy = types.SimpleNamespace(linalg=linalg)
    return stand_in


class _Patch:
    """How many programs are being traced, and what MJX's modules saw before the first of them."""

    def __init__(self):
        self.lock, self.depth, self.theirs = threading.Lock(), 0, ()

    def enter(self):
        with self.lock:
            if self.depth == 0:
                self.theirs = tuple(module.jax for module in FACTORING)
                stand_in = _jax_without_lapack()
                for module in FACTORING:
                    module.jax = stand_in
            self.depth += 1

    def leave(self):
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                for module, theirs in zip(FACTORING, self.theirs, strict=True):
                    module.jax = theirs


_patch = _Patch()


@contextlib.contextmanager
def without_lapack() -> Iterator[None]:
    """Within this context MJX factors matrices by `gentle_jax.cholesky` on a CPU.

    Needed around every call of MJX, where it is traced. Contexts may be nested and entered by
    several threads; MJX is as it was once the last of them has left.
    """
    _patch.enter()
    try:
        yield
    finally:
        _patch.leave()


@pytree
class State:
    """What one simulation carries from step to step."""

    qpos: Float[Array, " nq"]
    qvel: Float[Array, " nv"]
    warmstart: Float[Array, " nv"]  # the solver's first guess
    # Position as MuJoCo reports it after a step: that of its last evaluation, which was a substep
    # ago (Euler) or at the last stage (RK4).
    torso: Float[Array, "3"]
    contact_cost: Float[Array, ""]  # sum of clipped squared contact forces; 0 unless asked for


ResetSystem = Callable[[Float[Array, " nq"], Float[Array, " nv"]], State]
StepSystem = Callable[[Fields, State, Float[Array, " nu"]], tuple[State, Bool[Array, ""]]]


class System(NamedTuple):
    """A compiled model and how it is stepped; nothing of it is traced."""

    c_model: mujoco.MjModel
    model: mjx.Model
    blank: mjx.Data  # of the model, all zero
    frame_skip: int
    torso: int  # body id
    with_contact_cost: bool
    reset: ResetSystem | None  # (qpos, qvel); None only while a System is being made
    step: StepSystem | None  # (fields, state, control) -> (state, finite)

    @property
    def dt(self) -> float:
        """Seconds of one environment step."""
        return float(self.c_model.opt.timestep) * self.frame_skip


@functools.lru_cache(maxsize=32)
def load(
    asset: str,
    mode: str,
    timestep: float,
    frame_skip: int,
    integrator: str,
    edit: Callable[[mujoco.MjSpec], None] | None = None,
    with_contact_cost: bool = False,
) -> System:
    """Returns the System of one of brax's MJCF files.

    Args: asset, the file's name without suffix; mode, one of MODES; timestep, seconds; frame_skip,
    substeps of an environment step; integrator, "RK4" or "EULER", of `reference`; edit, changes the
    model before it is compiled. The same arguments give the same System, which is traced once in a
    process, however many programs step it.
    """
    folder = pathlib.Path(importlib.util.find_spec("brax").origin).parent / "envs" / "assets"
    spec = mujoco.MjSpec.from_file(str(folder / f"{asset}.xml"))
    if edit is not None:
        edit(spec)
    with warnings.catch_warnings():  # the cheetah's file says settotalmass, which still works
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'")
        c_model = spec.compile()
    c_model.opt.timestep = timestep
    set_mode(c_model, mode, integrator)
    return of_model(c_model, frame_skip, with_contact_cost, on_host=mode == "mujoco")


def of_model(
    c_model: mujoco.MjModel, frame_skip: int, with_contact_cost: bool = False, on_host: bool = False
) -> System:
    """Returns the System of a C model as it is, with the options that it has.

    Args: on_host, whether C MuJoCo steps it instead of MJX: on CPUs, elsewhere its step raises
    UserError where it is traced.
    """
    with without_lapack():
        model, blank = mjx.put_model(c_model, impl="jax"), mjx.make_data(c_model, impl="jax")
    system = System(
        c_model=c_model,
        model=_uncommitted(model),
        blank=_uncommitted(blank),
        frame_skip=frame_skip,
        torso=c_model.body("torso").id,
        with_contact_cost=with_contact_cost,
        reset=None,
        step=None,
    )
    # within another program `jit` reuses what was traced before, which saves seconds each time
    traced_once = lambda function, *more: jax.jit(functools.partial(function, system, *more))
    step = traced_once(_step)
    if on_host:
        torso = system.torso, with_contact_cost
        step = traced_once(_host_step, host_physics.stepper(c_model, frame_skip, *torso))
    return system._replace(reset=traced_once(_reset), step=step)


def set_mode(c_model: mujoco.MjModel, mode: str, integrator: str) -> None:
    """Sets integrator and solver limits of a C model for one of MODES, in place."""
    option = c_model.opt
    if mode == "fast":
        integrator = "EULER"
        option.iterations, option.ls_iterations = FAST_ITERATIONS, FAST_LS_ITERATIONS
        option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    option.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator}")
    option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE  # "auto" would differ between devices


def _uncommitted(tree):
    """The same tree with arrays that belong to no device: they follow the program that uses them.

    MJX's own are committed to the default device, and programs that mix the two kinds compile
    twice. NumPy leaves are structure to MJX and stay.
    """
    free = lambda x: jnp.asarray(np.asarray(x)) if isinstance(x, jax.Array) else x
    return jax.tree.map(free, tree)


def _reset(system, qpos, qvel):
    """Returns the State at a position and velocity; quaternions are normalised as by MuJoCo."""
    c_model = system.c_model
    for joint in np.flatnonzero(c_model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        at = slice(c_model.jnt_qposadr[joint] + 3, c_model.jnt_qposadr[joint] + 7)
        qpos = qpos.at[at].divide(jnp.linalg.norm(qpos[at]))
    zero = jnp.zeros(())
    with without_lapack():
        data = mjx.kinematics(system.model, system.blank.replace(qpos=qpos))
    return State(qpos, qvel, jnp.zeros(c_model.nv), data.xpos[system.torso], zero)


def _step(system, fields, state, control):
    """Advances one environment step; returns (State, finite).

    A step that would end in NaN or infinity is not taken, and `finite` is False. Args: fields, {}
    for none.
    """
    model = system.model.tree_replace(fields) if fields else system.model

    def substep(_, state):
        data = system.blank.replace(
            qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=control
        )
        with without_lapack():
            data = mjx.step(model, data)
            cost = _contact_cost(model, data) if system.with_contact_cost else state.contact_cost
        torso = data.xpos[system.torso]
        return State(data.qpos, data.qvel, data.qacc_warmstart, torso, cost)

    after = jax.lax.fori_loop(0, system.frame_skip, substep, state)
    finite = jnp.isfinite(after.qpos).all() & jnp.isfinite(after.qvel).all()
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), finite


def _host_step(system, step, fields, state, control):
    """Advances one environment step as `_step` does, by C MuJoCo."""
    if not host_physics.usable():
        raise errors.UserError(
            f"physics mujoco steps on CPUs, this is a {jax.default_backend()}: set "
            f"JAX_PLATFORMS=cpu, or train with --physics=reference or fast"
        )
    args = state.qpos, state.qvel, state.warmstart, control
    after = State(*step(fields, *args))
    # C MuJoCo takes a control that is not finite for none
    known = jnp.isfinite(control).all()
    finite = known & jnp.isfinite(after.qpos).all() & jnp.isfinite(after.qvel).all()
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), finite


def _contact_cost(model, data):
    """Sum of squared external forces on all bodies, each clipped to [-1, 1] (gym's Ant)."""
    forces = mjx.rne_postconstraint(model, data)._impl.cfrc_ext
    return jnp.square(jnp.clip(forces, -1.0, 1.0)).sum()


def c_model_of(system: System, fields: Fields) -> mujoco.MjModel:
    """Returns a copy of the C model with the fields of one task: the oracle of tests."""
    model = copy.copy(system.c_model)
    for name, value in fields.items():
        np.copyto(getattr(model, name), np.asarray(value, np.float64))
    return model


def fields_of(system: System, task: Task) -> Fields:
    """Returns those leaves of a task that replace fields of the model. Args: task, {name: leaf}."""
    is_field = lambda name: isinstance(getattr(system.c_model, name, None), np.ndarray)
    return {name: leaf for name, leaf in task.items() if is_field(name)}


def derived(system: System, fields: Fields) -> Fields:
    """Returns one task's `fields` plus what MuJoCo derives from them (`mj_setConst`).

    Except `stat.meaninertia`, which only scales the solver's tolerance.
    """
    model = c_model_of(system, fields)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return fields | {name: np.array(getattr(model, name), np.float32) for name in DERIVED}
