"""Point-Robot: reach a goal that only the reward reveals.

Suites `ctmrl` (40 goals on a half circle, 30/10), `ctmrl_b` (100, 80/20) and `gentle` (20 goals and
every start U(-1, 1)^2, first 10 and last 10). Source: docs/methods/environments.md, "Point-Robot".
"""

import numpy as np

from gentle_jax.envs import base, plane
from gentle_jax.types import Env

HALF_CIRCLE = {
    "backbone.discount": 0.90,
    "backbone.reward_scale": 100.0,
    "sac.reward_scale": 20.0,  # 100 for an entropy weight of 1 is 20 for one of 0.2
    "iql.reward_scale": 10.0,
    "brac_sac.use_brac": False,
}
PHYSICS = ("exact",)
OFFERS = ("relabel",)
SETTINGS = {
    "ctmrl": HALF_CIRCLE,
    "ctmrl_b": HALF_CIRCLE,
    "gentle": {
        "train.num_steps": 200_000,
        "train.meta_batch": 10,
        "train.context_size": 256,
        "train.latent_dim": 5,
        "backbone.discount": 0.90,
        "backbone.reward_scale": 5.0,
        "brac_sac.reward_scale": 100.0,  # FOCAL's: its dual weight of 500 belongs to it
        "sac.reward_scale": 20.0,
        "iql.reward_scale": 10.0,
        "backbone.width": 64,
        # the paper's data are the 1e5-step agent's; its own SAC file saves no such checkpoint
        "behaviour.num_steps": 100_000,
        "behaviour.seed_steps": 5_000,
        "behaviour.first_level": 100_000,
        "behaviour.num_levels": 1,
        "behaviour.episodes_per_level": 100,
        "eval.scored_steps": 600,
        "eval.num_repeats": 1,
        "eval.metric": "all",
    },
}
GOAL_SEED = 1337


def make(
    suite: str,
    mode: str = "exact",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`."""
    del mode, settings  # no physics engine
    if suite == "gentle":
        goals = np.random.RandomState(GOAL_SEED).uniform(-1.0, 1.0, (20, 2))
        split = base.first_last_split(10, 10, 20)
        return plane.make(
            "point_robot", suite, goals, np.zeros((20, 2)), split, horizon=20, random_start=True
        )
    num_train, num_test = (80, 20) if suite == "ctmrl_b" else (30, 10)
    goals = plane.half_circle(num_train + num_test)
    split = base.interpolation_split(num_train, num_test)
    return plane.make("point_robot", suite, goals, np.zeros_like(goals), split, horizon=20)
