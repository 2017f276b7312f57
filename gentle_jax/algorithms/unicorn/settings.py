"""UNICORN's constants: the config, published settings, sizes of presets, the paper's variants."""

import dataclasses

from gentle_jax import encoders
from gentle_jax.config import by_fidelity

OFFERS = ("predict_reward",)
PROTOCOL = "given_context"  # the authors' own; CTMRL's table has `random_then_policy`
VARIANTS = {
    "unicorn_0": {"objective": "prediction"},
    "unicorn_sup": {"objective": "classification"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/unicorn.md; floats are leaves of `hp`."""

    form: str = by_fidelity("paper")
    objective: str = "both"  # metric and prediction; or "prediction", "classification" of tasks
    width: int = 200  # of the encoder
    depth: int = 3
    use_next_obs: bool = False
    decoder_width: int = 256  # of the classifier, too
    decoder_depth: int = 2
    focal_weight: float = 10.0
    prediction_weight: float = 1.5
    lr: float = 3e-4


def lacks(config: Config) -> tuple[str, ...]:
    """Returns what of OFFERS these settings lack: UNICORN-SUP decodes no rewards."""
    return OFFERS if config.objective == "classification" else ()


_WEIGHTS = {"hopper_params": 15.0, "walker_params": 7.0}  # elsewhere 1.5
# of the authors' own code: FOCAL's weight, Z, width of all networks
_RELEASE = {
    "cheetah_dir": (0.01, 5, 64), "hopper_params": (1.5, 40, 128), "walker_params": (0.7, 32, 128),
}  # fmt: skip


def _release(weight, latent_dim, width):
    widths = {"algo.width": width, "algo.decoder_width": width}
    return {"algo.focal_weight": weight, "train.latent_dim": latent_dim} | widths


SETTINGS = {
    (suite, env): sizes | {"algo.prediction_weight": _WEIGHTS.get(env, 1.5)}
    for (suite, env), sizes in encoders.SETTINGS.items()
}
SETTINGS |= {
    (*key, "release"): _release(*_RELEASE[key[1]]) for key in SETTINGS if key[1] in _RELEASE
}
DEFAULT_FIDELITY = "paper"
FIDELITY = {
    "paper": {"algo.form": "paper"},
    "release": {
        "algo.form": "release",
        "algo.depth": 2,
        "algo.use_next_obs": True,
        "algo.prediction_weight": 1.0,
        "train.meta_batch": 16,
        "train.task_draw": "replace",
    }
    | _release(0.15, 5, 64),
}
PRESETS = encoders.PRESETS | {
    "quick": {"algo.decoder_width": 64, "algo.prediction_weight": 0.5},  # docs/methods/unicorn.md
    "smoke": {"algo.decoder_width": 16},
}
