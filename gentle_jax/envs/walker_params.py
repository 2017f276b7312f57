"""Walker-Rand-Params: walk with a body that differs between tasks (`random_params`).

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
SHARED = {**random_params.CTMRL, "train.latent_dim": 40}
SETTINGS = {"ctmrl": SHARED, "ctmrl_b": SHARED, "gentle": random_params.GENTLE}
PRESETS, BACKBONES = random_params.PRESETS, locomotion.BACKBONES


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""

    def healthy(qpos, qvel):
        del qvel
        return (qpos[1] > 0.8) & (qpos[1] < 2.0) & (jnp.abs(qpos[2]) < 1.0)

    return random_params.make("walker_params", "walker2d", suite, mode, settings, healthy)
