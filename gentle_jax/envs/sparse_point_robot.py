"""Sparse-Point-Robot: contexts and reported returns see reward near the goal only.

The backbone learns from the dense reward. Suites `ctmrl` (40 tasks, 30/10) and `ctmrl_b` (100,
80/20). Source: docs/methods/environments.md, "Sparse-Point-Robot".
"""

import numpy as np

from gentle_jax.envs import base, plane
from gentle_jax.types import Env

SHARED = {
    "train.num_steps": 50_000,
    "backbone.discount": 0.90,
    "backbone.reward_scale": 100.0,
    "sac.reward_scale": 20.0,  # 100 for an entropy weight of 1 is 20 for one of 0.2
    "iql.reward_scale": 10.0,
    "brac_sac.use_brac": False,
    "eval.context_episodes": 10,
}
PHYSICS = ("exact",)
OFFERS = ("relabel",)
SETTINGS = {"ctmrl": SHARED, "ctmrl_b": SHARED}
# Rows of one behaviour level hold no reward at all in a third of the contexts
PRESETS = {"quick": {"train.context_draw": "uniform"}}
RADIUS = 0.2


def make(
    suite: str,
    mode: str = "exact",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`."""
    del mode, settings  # no physics engine
    num_train, num_test = (80, 20) if suite == "ctmrl_b" else (30, 10)
    goals = plane.half_circle(num_train + num_test)
    split = base.interpolation_split(num_train, num_test)
    return plane.make(
        "sparse_point_robot", suite, goals, np.zeros_like(goals), split, 20, sparse_radius=RADIUS
    )
