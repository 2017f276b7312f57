"""Cheetah-Vel: run at a given speed; r = -|v - v*| - 0.05 |a|^2.

Suites `ctmrl` (40 speeds, even in [1, 3], 30/10), `ctmrl_b` (100, 80/20) and `gentle` (20 speeds
U(0, 6), first and last 10). Source: docs/methods/environments.md, "Cheetah-Vel".
"""

import jax.numpy as jnp
import numpy as np

from gentle_jax.envs import base, cheetah, locomotion
from gentle_jax.physics import MODES
from gentle_jax.types import Env, TaskLeaf, TaskRules

PHYSICS = MODES
OFFERS = ("relabel",)
INTERPOLATED = {
    **locomotion.CTMRL,
    **locomotion.LATE,
    "train.context_size": 100,
    "brac_sac.alpha_init": 50.0,
}
SETTINGS = {
    "ctmrl": INTERPOLATED,
    "ctmrl_b": INTERPOLATED,
    "gentle": {**locomotion.GENTLE, "behaviour.episodes_per_level": 50},
}
PRESETS, BACKBONES = locomotion.PRESETS, locomotion.BACKBONES
SPEED_SEED = 1337


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""
    del settings
    if suite == "gentle":
        speeds = locomotion.legacy(SPEED_SEED, 0.0, 6.0, 20)
        split = base.first_last_split(10, 10, 20)
    else:
        sizes = (80, 20) if suite == "ctmrl_b" else (30, 10)
        speeds, split = np.linspace(1.0, 3.0, sum(sizes)), base.interpolation_split(*sizes)
    tasks = {"speed": speeds.astype(np.float32)}
    system = cheetah.load(mode)

    def reward(task, speed, action):
        return -jnp.abs(speed - task["speed"]) - 0.05 * jnp.square(action).sum(-1)

    def judge(task, before, after, action):
        return reward(task, cheetah.speed(system, before, after), action), None

    def relabel(task, rows):
        return reward(task, cheetah.speed_of_rows(system, rows), rows.action)

    return locomotion.make(
        "cheetah_vel",
        suite,
        system,
        tasks,
        split,
        cheetah.observe,
        judge,
        cheetah.NOISE,
        rules=TaskRules(
            {"speed": TaskLeaf(-100.0, 100.0)},
            lambda tasks: {"parameters": tasks["speed"][:, None]},
        ),
        hidden=1,
        parameter_names=("target speed (m/s)",),
        relabel=relabel,
    )
