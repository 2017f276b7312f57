"""The half-cheetah that Cheetah-Vel and Cheetah-Dir share: Euler, .01 s x 5.

Source: docs/methods/environments.md, "Cheetah-Vel".

brax's model differs from gym's in what touches the ground: head, thighs and feet do, torso and
shins do not.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import physics
from gentle_jax.envs import locomotion
from gentle_jax.types import Transition

TORSO, SPEED = 17, 8  # where the torso's position and the velocities begin in an observation
NOISE = (0.1, locomotion.normal(0.1))


def load(mode: str) -> physics.System:
    """Returns the physics System; gym's model uses Euler in `reference` already."""
    return physics.load("half_cheetah", mode, 0.01, 5, "EULER")


def observe(state: physics.State) -> Float[Array, " obs"]:
    """Returns [20]: qpos without x, qvel, the torso's position."""
    return jnp.concatenate([state.qpos[1:], state.qvel, state.torso])


def speed(system: physics.System, before: physics.State, after: physics.State) -> Float[Array, ""]:
    """Returns the mean forward speed over one step, m/s."""
    return (after.qpos[0] - before.qpos[0]) / system.dt


def speed_of_rows(system: physics.System, rows: Transition) -> Float[Array, "*rows"]:
    """Returns `speed` [...] of stored rows [...], from the torso's place in both observations.

    The torso lies a substep behind the joints (`locomotion.torso_lag`), but not at a reset: heights
    tell which, since rows hold the height of the root joint too. Where a start moves up or down at
    less than 1 mm/s they do not, and its x is wrong by a substep of its speed.
    """
    model = system.c_model
    higher = model.body_pos[system.torso][2] - model.qpos0[1]  # torso above root joint
    lag = locomotion.torso_lag(system)

    def x(obs, may_be_start):
        ahead = lag * obs[..., SPEED : SPEED + 2]  # forwards and up
        gap = obs[..., 0] + higher - obs[..., TORSO + 2]  # ahead[1], 0 at a reset
        up = jnp.abs(ahead[..., 1])
        start = may_be_start & (up > lag * 1e-3) & (jnp.abs(gap) < 0.5 * up)
        return obs[..., TORSO] + jnp.where(start, 0.0, ahead[..., 0])

    return (x(rows.next_obs, False) - x(rows.obs, True)) / system.dt
