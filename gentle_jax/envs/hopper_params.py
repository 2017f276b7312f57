"""Hopper-Rand-Params: hop with a body that differs between tasks (`random_params`).

Suites `ctmrl` and `ctmrl_b` (40 tasks, 30/10): ctmrl_suite.md sec. 12-13. Suite `gentle` (20, first
and last 10): gentle_suite.md sec. 1.1.
"""

import jax.numpy as jnp

from gentle_jax.envs import base, locomotion, random_params
from gentle_jax.physics import MODES

PHYSICS = MODES
SHARED = {
    **locomotion.CTMRL,
    "train.context_size": 256,
    "brac_sac.alpha_init": 50.0,
    "brac_sac.alpha_max": 10_000.0,
    "ctmrl.use_next_obs": True,
    "ctmrl.num_codes": 16,
    "ctmrl.club_weight": 25.0,
}
SETTINGS = {
    "ctmrl": SHARED,
    "ctmrl_b": SHARED,
    "gentle": {**locomotion.GENTLE, "train.latent_dim": 10, "gentle.use_next_obs": True},
}
PRESETS = locomotion.PRESETS


def make(suite, mode="reference", settings=base.EnvConfig()):  # noqa: B008 frozen
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""

    def healthy(qpos, qvel):
        rest = jnp.concatenate([qpos[2:], qvel])
        return (qpos[1] > 0.7) & (jnp.abs(qpos[2]) < 0.2) & (jnp.abs(rest) < 100.0).all()

    return random_params.make("hopper_params", "hopper", suite, mode, settings, healthy)
