"""GENTLE's constants: the config, published settings, sizes of presets, the paper's ablations."""

import dataclasses

from gentle_jax.config import from_zero, static

PERIODIC = "relabel_every"
OFFERS = ("predict_reward",)
DEFAULT_FIDELITY = "release"
FIDELITY = {
    "release": {},
    "paper": {
        "algo.relabel_z": "target",
        "algo.relabel_policy": "sample",
        "algo.balanced_sources": True,
        "algo.union_context": True,
        "algo.use_next_obs": True,
    },
}


# the paper's names of its Table 2 in `experiments/papers`
VARIANTS = {
    "gentle_contrastive": {"objective": "contrastive"},
    "gentle_no_relabel": {"relabel": False},
    "gentle_no_policy_relabel": {"policy_relabel": False},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/gentle.md; floats are leaves of `hp` unless static."""

    width: int = 256
    depth: int = 3
    use_next_obs: bool = False  # in contexts and reconstruction (Hopper and Walker)
    # Table 2 and Figure 3 of the paper
    objective: str = "reconstruct"  # or "contrastive": FOCAL's loss, no decoder
    relabel: bool = True
    policy_relabel: bool = True  # False keeps the dataset's actions
    num_cross_tasks: int = from_zero(3)
    own_share: float = static(1.0)  # Fig. 3's 1:12 and 1:15 keep 0.75 and 0.6 of the own rows
    # what the release and the paper do differently
    relabel_z: str = "source"  # or "target"
    relabel_policy: str = "target_mode"  # or "sample", "mode"
    balanced_sources: bool = False
    union_context: bool = False
    relabel_every: int = 400
    relabel_rows: int = 2560  # per source task
    relabel_ratio: float = static(0.95)
    ensemble_size: int = 7
    model_batch: int = 256
    max_epochs: int = 200
    patience: int = 5
    model_lr: float = 1e-3
    recon_weight: float = 10.0
    focal_weight: float = 10.0
    lr: float = 3e-4


def lacks(config: Config) -> tuple[str, ...]:
    """Returns what of OFFERS these settings lack: only the auto-encoder decodes rewards."""
    return () if config.objective == "reconstruct" else OFFERS


SETTINGS = {
    ("gentle", "point_robot"): {"algo.width": 64},
    ("gentle", "cheetah_dir"): {"algo.num_cross_tasks": 1},
    ("gentle", "hopper_params"): {"algo.use_next_obs": True},
    ("gentle", "walker_params"): {"algo.use_next_obs": True},
}
PRESETS = {
    "quick": {"algo.max_epochs": 40, "algo.relabel_rows": 512, "algo.relabel_every": 200},
    "smoke": {
        "algo.max_epochs": 2,
        "algo.relabel_rows": 16,
        "algo.relabel_every": 8,
        "algo.ensemble_size": 2,
        "algo.model_batch": 32,
    },
}
