"""Point-Robot-Wind: one goal, a constant wind that only the outcome of actions reveals.

No relabelling: tasks differ in dynamics, so that a stored outcome says nothing of another task.

Suites `ctmrl` (40 winds, 30/10) and `ctmrl_b` (50, 40/10). Source:
docs/methods/environments.md, "Point-Robot-Wind".
"""

import numpy as np

from gentle_jax.envs import base, plane
from gentle_jax.types import Env

SHARED = {
    "train.num_steps": 50_000,
    "train.context_size": 256,
    "backbone.discount": 0.90,
    "backbone.reward_scale": 100.0,
    "sac.reward_scale": 20.0,  # 100 for an entropy weight of 1 is 20 for one of 0.2
    "iql.reward_scale": 10.0,
    "brac_sac.use_brac": False,
    "eval.context_episodes": 5,
    "eval.reference_episodes": 5,
    "eval.num_candidates": 5,
    "eval.fragment_steps": 20,
}
PHYSICS = ("exact",)
SETTINGS = {"ctmrl": SHARED, "ctmrl_b": SHARED}
WIND_SEED = 1337
GOAL = (1.0, 0.0)


def make(
    suite: str,
    mode: str = "exact",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`: all first coordinates are drawn before all second ones."""
    del mode, settings  # no physics engine
    num_train, num_test = (40, 10) if suite == "ctmrl_b" else (30, 10)
    total = num_train + num_test
    random = np.random.RandomState(WIND_SEED)
    winds = np.stack([random.uniform(-0.05, 0.05, total) for _ in range(2)], -1)
    goals = np.tile(np.array(GOAL, np.float32), (total, 1))
    split = base.interpolation_split(num_train, num_test)
    env = plane.make("point_robot_wind", suite, goals, winds, split, horizon=25, differ_in="wind")
    return env._replace(relabel=None)
