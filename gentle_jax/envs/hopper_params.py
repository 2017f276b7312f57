"""Hopper-Rand-Params: hop with a body that differs between tasks (`random_params`).

No relabelling: tasks differ in dynamics, so that a stored outcome says nothing of another task; and
rows hold no position.

Suites `ctmrl` and `ctmrl_b` (40 tasks, 30/10), suite `gentle` (20, first and last 10). Source:
docs/methods/environments.md, "Hopper and Walker".
"""

import jax.numpy as jnp

from gentle_jax.envs import base, locomotion, random_params
from gentle_jax.physics import MODES
from gentle_jax.types import Env

PHYSICS = MODES
SETTINGS = {
    "ctmrl": random_params.CTMRL, "ctmrl_b": random_params.CTMRL, "gentle": random_params.GENTLE,
}  # fmt: skip
PRESETS, BACKBONES = random_params.PRESETS, locomotion.BACKBONES


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""

    def healthy(qpos, qvel):
        rest = jnp.concatenate([qpos[2:], qvel])
        return (qpos[1] > 0.7) & (jnp.abs(qpos[2]) < 0.2) & (jnp.abs(rest) < 100.0).all()

    return random_params.make("hopper_params", "hopper", suite, mode, settings, healthy)
