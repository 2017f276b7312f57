"""Stored rows once more through a family's physics, on the host: C MuJoCo, nothing is compiled.

MJX is tested against it. What a row does not hold follows from the row before it: that one is
stepped first, and leaves the solver's first guess and the positions that observations lack. Speeds
that are clipped follow from the rows before: all are stepped from the earliest without any.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gentle_jax import physics
from gentle_jax.types import Replay, Step


def by_mujoco(
    system: physics.System, observe: Callable, judge: Callable, hidden: int, speed_limit: float
) -> Replay:
    """Returns the Replay of a family. Args: as of `locomotion.make`."""

    @jax.jit
    def seen(task, state, after, obs, action):
        reward, terminal = jax.vmap(judge, (None, 0, 0, 0))(task, state, after, action)
        moved = jax.vmap(observe)(after) - jax.vmap(observe)(state)  # without the hidden positions
        over = jnp.zeros_like(reward) if terminal is None else terminal.astype(jnp.float32)
        return Step(obs + moved, reward, reward, over)

    def replay(task, before, rows):
        model = physics.c_model_of(system, physics.fields_of(system, task))
        begins = _begins(before, rows, model, hidden, speed_limit)
        with _quiet():
            states, afters = stepped(model, before, rows, begins)
        stack = lambda each: jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        out = seen(task, stack(states), stack(afters), rows.obs, rows.action)
        blank = np.where(begins < 0, np.nan, 0.0).astype(np.float32)
        return out._replace(obs=out.obs + blank[:, None], reward=out.reward + blank)

    def stepped(model, before, rows, begins):
        """Returns the states before and after each row."""
        data, states, afters = mujoco.MjData(model), [], []
        for i, begin in enumerate(begins):
            mujoco.mj_resetData(model, data)
            past = range(begin, before.obs.shape[1]) if begin >= 0 else ()
            for k in past:
                _place(model, data, before.obs[i, k], hidden, speed_limit)
                _advance(system, model, data, before.action[i, k])
            _place(model, data, rows.obs[i], hidden, speed_limit)
            if not len(past):
                mujoco.mj_kinematics(model, data)
            states.append(_state(system, data))
            _advance(system, model, data, rows.action[i])
            afters.append(_state(system, data))
        return states, afters

    return replay


def _begins(before, rows, model, hidden, speed_limit):
    """Returns [N], which row before each to begin with; K: with the row itself; -1: unknown.

    Where speeds are clipped, the earliest row that says all: the solver's first guess counts there.
    """
    known = model.nq - hidden
    clear = lambda obs: (np.abs(obs[..., known : known + model.nv]) < speed_limit).all(-1)
    able, count = np.isfinite(before.obs).all(-1) & clear(before.obs), before.obs.shape[1]
    if np.isinf(speed_limit):
        able[:, : count - 1] = False
    alone = np.where(clear(rows.obs), count, -1)
    return np.where(able.any(1), able.argmax(1), alone)


@contextlib.contextmanager
def _quiet():
    """Keeps MuJoCo from writing its log file where rows of no simulation make it unstable."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)


def _place(model, data, obs, hidden, speed_limit):
    """Moves MuJoCo's state to what an observation says of it."""
    known = model.nq - hidden
    velocity = obs[known : known + model.nv]
    data.qpos[hidden:] = obs[:known]
    data.qvel[:] = np.where(np.abs(velocity) >= speed_limit, data.qvel, velocity)


def _advance(system, model, data, action):
    """Takes one environment step."""
    data.ctrl[:] = np.clip(action, -1.0, 1.0)
    for _ in range(system.frame_skip):
        mujoco.mj_step(model, data)
    if system.with_contact_cost:
        mujoco.mj_rnePostConstraint(model, data)


def _state(system, data):
    """Returns MuJoCo's state as a physics.State of float32."""
    forces = np.clip(data.cfrc_ext, -1.0, 1.0) if system.with_contact_cost else np.zeros(1)
    leaves = data.qpos, data.qvel, data.qacc_warmstart, data.xpos[system.torso], (forces**2).sum()
    return physics.State(*(np.array(leaf, np.float32) for leaf in leaves))
