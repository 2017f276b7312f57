"""The ant that Ant-Dir and Ant-Goal share: RK4, .01 s x 5, gear 150.

Source: docs/methods/environments.md, "Ant-Dir".
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import physics
from gentle_jax.envs import base, locomotion
from gentle_jax.types import Action

NOISE = (0.1, locomotion.normal(0.1))
CONTACT_WEIGHT = 5e-4


def load(mode: str, settings: base.EnvConfig) -> physics.System:
    """Returns the physics System. Args: mode; settings, an EnvConfig with `contact_cost`.

    brax's model lets only the feet touch the ground; here the torso does so too. In gym's every
    part does. Ant-Goal does not end when the ant falls over, and a torso must not sink.
    """
    return physics.load(
        "ant", mode, 0.01, 5, "RK4", _torso_touches, with_contact_cost=settings.contact_cost
    )


def _torso_touches(spec):
    spec.geom("torso_geom").contype = 1


def cost(after: physics.State, action: Action, action_weight: float) -> Float[Array, ""]:
    """Returns the cost of control and, where it is asked for, of contacts."""
    return control_cost(action, action_weight) + CONTACT_WEIGHT * after.contact_cost


def control_cost(
    action: Float[Array, "*rows action"], action_weight: float
) -> Float[Array, "*rows"]:
    """Returns the cost [...] of actions [..., 8]."""
    return action_weight * jnp.square(action).sum(-1)
