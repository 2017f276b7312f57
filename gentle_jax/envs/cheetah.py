"""The half-cheetah that Cheetah-Vel and Cheetah-Dir share (both sheets: Euler, .01 s x 5).

brax's model differs from gym's in what touches the ground: head, thighs and feet do, torso and
shins do not.
"""

import jax.numpy as jnp

from gentle_jax import physics
from gentle_jax.envs import locomotion

NOISE = (0.1, locomotion.normal(0.1))


def load(mode):
    """Returns the physics System; gym's model uses Euler in `reference` already."""
    return physics.load("half_cheetah", mode, 0.01, 5, "EULER")


def observe(state):
    """Returns [20]: qpos without x, qvel, the torso's position."""
    return jnp.concatenate([state.qpos[1:], state.qvel, state.torso])


def speed(system, before, after):
    """Returns the mean forward speed over one step, m/s."""
    return (after.qpos[0] - before.qpos[0]) / system.dt
