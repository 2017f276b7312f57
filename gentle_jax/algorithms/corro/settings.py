"""CORRO's constants: the config, published settings, sizes of presets, the kinds of negatives."""

import dataclasses

from gentle_jax.config import from_zero

PROTOCOL = "given_context"
NEGATIVES = ("generative", "reward", "none")
CVAE_PASSES = 100  # over as many rows a task as the smallest has: the released number of epochs


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/corro.md; floats are leaves of `hp`."""

    width: int = 64  # E1
    depth: int = 2
    negatives: str = "generative"  # or "reward", "none"
    dynamics_vary: bool = False  # then "reward" is refused: r alone does not tell tasks apart
    num_negatives: int = 16
    contrast_batch: int = 64
    contrast_steps: int = 200_000
    temperature: float = 0.1
    reward_std: float = 0.5  # of "reward"
    cvae_width: int = 64
    code_dim: int = 5  # of the CVAE
    cvae_batch: int = 128
    cvae_steps: int = from_zero(0)  # 0: CVAE_PASSES passes
    kl_weight: float = 0.2
    cvae_lr: float = 3e-4
    contrast_lr: float = 3e-4
    lr: float = 3e-4  # of the attention


# what the paper's text calls the other kinds of negatives
VARIANTS = {
    "corro_reward_randomization": {"negatives": "reward"},
    "corro_none": {"negatives": "none"},
}

_TASKS = {"train.meta_batch": 16, "train.task_draw": "replace"}
# the size of z is that of a row's code, so it is published with the method
_SMALL = {"train.latent_dim": 5}
_ANT = _SMALL | {"algo.cvae_width": 128, "algo.code_dim": 64}
_DYNAMICS = {"algo.dynamics_vary": True}
_WIDE = _ANT | _DYNAMICS | {"algo.width": 128}
_BOTH = {
    "point_robot": _SMALL,
    "cheetah_vel": _SMALL,
    "hopper_params": _WIDE | {"train.latent_dim": 40},
    "walker_params": _WIDE | {"train.latent_dim": 32},
}
_CTMRL = _BOTH | {
    "sparse_point_robot": _SMALL,
    "point_robot_wind": _SMALL | _DYNAMICS,
    "ant_goal": _ANT,
}
_GENTLE = _BOTH | {"ant_dir": _ANT, "cheetah_dir": _SMALL}
SETTINGS = {
    (suite, env): _TASKS | fields
    for suite, envs in (("ctmrl", _CTMRL), ("ctmrl_b", _CTMRL), ("gentle", _GENTLE))
    for env, fields in envs.items()
}
PRESETS = {
    "quick": {
        "train.task_draw": "distinct",
        "algo.cvae_steps": 12_000,
        "algo.cvae_width": 128,
        "algo.cvae_lr": 3e-3,
        "algo.kl_weight": 0.001,
        "algo.contrast_steps": 6_000,
        "algo.contrast_lr": 8e-3,
    },
    "smoke": {"algo.cvae_steps": 20, "algo.contrast_steps": 20, "algo.cvae_width": 16},
}
