"""Cases and inputs of `test_golden`: small, and the same on any machine and for any layout."""

import zlib
from typing import NamedTuple

import numpy as np

from gentle_jax import data as data_lib

TASKS, LEVELS, EPISODES, STEPS = 4, 2, 3, 5  # of the data; 30 rows a task
ADAM_STEPS = 1000  # behind every optimiser: a first step would only show the signs of gradients
SEED = 7


class Case(NamedTuple):
    """What is run: one step `index` of a stage, from inputs that its names give."""

    algorithm: str
    backbone: str
    settings: dict
    suite: str = "ctmrl"
    fidelity: str = "release"
    stage: int = -1
    index: int = 1
    one_row: bool = False  # all rows of a task are the same: what is drawn then makes no difference
    inputs: dict = {}  # noqa: RUF012 name -> value instead of the drawn one
    free: tuple = ()  # arrays (or networks) that later versions change on purpose
    free_metrics: tuple = ()


# --- cases

RATES = {"algo.lr": 0.05, "backbone.lr": 0.05, "backbone.tau": 0.1, "backbone.reward_scale": 2.0}
# without K-means the stages' steps are the joint step itself
CTMRL = RATES | {
    "backbone.policy_lr": 0.05, "backbone.use_brac": False, "backbone.mean_penalty": 0.5,
    "backbone.std_penalty": 0.5, "algo.use_kmeans": False, "algo.encoder_depth": 2,
    "algo.num_codes": 3, "algo.use_contrast": False, "algo.club_weight": 5.0,
    "algo.code_loss_weight": 3.0,
}  # fmt: skip
CONTRAST = CTMRL | {"algo.use_contrast": True, "algo.contrast_weight": 5.0}
BRAC = CTMRL | {
    "backbone.use_brac": True, "backbone.dual_lr": 0.05, "backbone.alpha_lr": 0.5,
    "backbone.alpha_max": 1.0,
}  # fmt: skip
NOISY = RATES | {"backbone.noise_clip": 0.2}  # so that some of it is clipped
GENTLE = NOISY | {"algo.depth": 2, "algo.model_lr": 0.05}
FOCAL = NOISY | {"algo.width": 8, "algo.depth": 2}
# tasks 0 and 2 match code 0, the others code 1, before and after all moving averages
GROUPED = {
    "codes": [[0.45, -0.65, 0.8], [0.6, -0.6, 0.1], [-0.5, 0.5, 0.2]],
    "mean": [[1.0, -1.2, 1.5], [0.8, -0.9, 0.2], [-0.4, 0.6, 0.2]],
    "size": [2.0, 1.5, 1.0],
}
# the policy's std is exp(-20), so that its sample is its mean whatever the noise, and the dual
# critic stays within (-1, 1), where its penalty, and with it the mixing noise, is 0
PINNED = {
    "policy/Dense_2/kernel": 0.0, "policy/Dense_2/bias": -30.0,
    "dual/Dense_1/kernel": 0.05, "dual/Dense_1/bias": 0.1,
}  # fmt: skip
# Adam's step on the released codes used to be left out (their running mean and size are the same)
BOOK = {"free": ("codes", "mu/codes")}
# BRAC's first dual step used an action sample of its own, not the policy step's
SAMPLED = {
    "free": (*BOOK["free"], "dual", "mu/dual", "policy", "mu/policy", "alpha"),
    "free_metrics": ("divergence",),
}

CASES = {
    "ctmrl_warmup": Case("ctmrl", "brac_sac", CTMRL, stage=0),
    "ctmrl_train": Case("ctmrl", "brac_sac", CTMRL | {"train.final_lr": 0.5}, **BOOK),
    "ctmrl_contrast": Case("ctmrl", "brac_sac", CONTRAST, one_row=True, inputs=GROUPED, **BOOK),
    # no task is alone, so that fillers, which are drawn, make no difference
    "ctmrl_paper": Case(
        "ctmrl", "brac_sac", CONTRAST, fidelity="paper", one_row=True, inputs=GROUPED
    ),
    "ctmrl_brac": Case("ctmrl", "brac_sac", BRAC, **SAMPLED),
    "ctmrl_brac_pinned": Case("ctmrl", "brac_sac", BRAC, inputs=PINNED, **BOOK),
    # index 2: nothing is relabelled, the delayed actor moves
    "gentle_train": Case("gentle", "td3_bc", GENTLE, "gentle", index=2),
    "gentle_relabel": Case("gentle", "td3_bc", GENTLE, "gentle", index=0),
    "gentle_relabel_one_row": Case(
        "gentle", "td3_bc", GENTLE | {"algo.num_cross_tasks": 3}, "gentle", index=0, one_row=True
    ),
    # the second of two steps an epoch: a batch that is half full, then the end of the epoch
    "gentle_dynamics": Case("gentle", "td3_bc", GENTLE, "gentle", stage=0),
    "focal_train": Case("focal", "td3_bc", FOCAL, "gentle", "paper", index=0),
}


# --- inputs

# uniform in these; the longest name that fits counts
RANGES = {
    "": (-0.6, 0.6), "mu": (-0.05, 0.05), "nu": (0.01, 0.05), "encoder": (-1.0, 1.0),
    "mean": (-1.0, 1.0), "size": (1.0, 3.0), "matrix": (0.0, 1.0), "best_error": (0.0, 1.0),
    "policy/Dense_2/bias": (-1.5, -0.5), "target_policy/Dense_2/bias": (-1.5, -0.5),
    "alpha": (1.0, 2.0), "data": (-1.0, 1.0), "data/action": (-0.9, 0.9),
}  # fmt: skip


def draw(name, shape):
    """Returns float32 numbers that depend on the name and shape only, on any machine."""
    low, high = RANGES[max((key for key in RANGES if name.startswith(key)), key=len)]
    unit = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape)
    return np.float32(np.round(low + (high - low) * unit, 4))


def _blocks(slots):
    """`pair` and `count` of a relabel buffer: source t labels for itself and for t + 1, ..."""
    sources = (np.arange(TASKS)[:, None] - np.arange(TASKS)) % TASKS  # of a target, by slot
    return sources * slots + np.arange(TASKS) % slots, np.full(TASKS, slots)


def _whole(name, shape, slots):
    """Whole numbers: counts, rows, blocks."""
    rows = LEVELS * EPISODES * STEPS
    kept = np.stack([np.random.RandomState(t).permutation(rows) for t in range(TASKS)])
    held = rows // 5
    some = np.random.RandomState(TASKS).randint(held, rows, (TASKS, 2, rows - held))
    made = {
        "stale": np.array([0, 1, 4, 5]),  # the last task has stopped
        "holdout": kept[:, :held],
        "order": np.take_along_axis(kept[:, None], some, -1),
        "buffer/pair": _blocks(slots)[0],
        "buffer/count": _blocks(slots)[1],
    }
    made = np.full(shape, ADAM_STEPS) if name.startswith("count/") else made[name]
    assert made.shape == shape, name
    return made.astype(np.int32)


def value_of(name, leaf, case):
    """Returns the input of this name; `leaf` has its shape and type."""
    if name in case.inputs:
        return np.broadcast_to(np.float32(case.inputs[name]), leaf.shape)
    if name == "codes":  # as after a moving average, and a little further
        mean, size = draw("mean", leaf.shape), draw("size", leaf.shape[:1])
        return np.round(mean / size[:, None] + 0.1 * draw("codes", leaf.shape), 4)
    if np.issubdtype(leaf.dtype, np.integer):
        return _whole(name, leaf.shape, case.settings.get("algo.num_cross_tasks", 1) + 1)
    return np.zeros(leaf.shape, np.float32) if name == "codes_on" else draw(name, leaf.shape)


def dataset(case):
    """Returns the data of all training tasks."""
    shape = (TASKS, LEVELS, EPISODES, STEPS)
    sizes = {"obs": (2,), "action": (2,), "reward": (), "context_reward": (), "next_obs": (2,)}
    fields = {name: draw(f"data/{name}", shape + size) for name, size in sizes.items()}
    fields["terminal"] = np.zeros(shape, np.float32)
    if case.one_row:
        fields = {k: np.broadcast_to(x[:, :1, :1, :1], x.shape) for k, x in fields.items()}
    return data_lib.from_episodes(fields, np.ones(shape), timeout_is_terminal=not case.one_row)
