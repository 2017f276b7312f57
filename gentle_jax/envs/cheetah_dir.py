"""Cheetah-Dir: run forwards or backwards; r = sign * v - 0.05 |a|^2.

Two tasks, both of them training and test tasks. Suite `gentle`. Source:
docs/methods/environments.md, "Cheetah-Dir".
"""

import jax.numpy as jnp
import numpy as np

from gentle_jax.envs import base, cheetah, locomotion
from gentle_jax.physics import MODES
from gentle_jax.types import Env, TaskLeaf, TaskRules

PHYSICS = MODES
OFFERS = ("relabel",)
SETTINGS = {
    "gentle": {
        **locomotion.GENTLE,
        "train.meta_batch": 4,
        "behaviour.episodes_per_level": 100,
        "eval.num_candidates": 0,  # both tasks
    },
}
TWO_TASKS = {
    "env.num_train": 0,
    "env.num_test": 0,
    "train.meta_batch": 4,
}
PRESETS = {
    **locomotion.PRESETS,
    "quick": locomotion.QUICK | TWO_TASKS,
    "smoke": locomotion.SMOKE | TWO_TASKS,
}


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""
    del settings
    tasks = {"direction": np.array([-1.0, 1.0], np.float32)}
    system = cheetah.load(mode)

    def reward(task, speed, action):
        return task["direction"] * speed - 0.05 * jnp.square(action).sum(-1)

    def judge(task, before, after, action):
        return reward(task, cheetah.speed(system, before, after), action), None

    def relabel(task, rows):
        return reward(task, cheetah.speed_of_rows(system, rows), rows.action)

    return locomotion.make(
        "cheetah_dir",
        suite,
        system,
        tasks,
        (np.arange(2), np.arange(2)),
        cheetah.observe,
        judge,
        cheetah.NOISE,
        rules=TaskRules(
            {"direction": TaskLeaf(unit=True)},
            lambda tasks: {"parameters": tasks["direction"][:, None]},
        ),
        hidden=1,
        parameter_names=("direction",),
        relabel=relabel,
    )
