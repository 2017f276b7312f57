"""Size presets: same method, other sizes. Keys are dotted; a test checks that every one exists.

`paper` changes nothing: the defaults are the published sizes. Layers apply in the order of `layers`.
"""

from gentle_jax import errors

PRESETS = ("auto", "paper", "quick", "smoke")

# A run that ends within minutes on two CPU cores.
QUICK = {
    "train.meta_batch": 10,
    "train.batch_size": 64,
    "train.context_size": 100,
    "train.context_draw": "level",
    "train.num_steps": 4_000,
    "train.num_evals": 6,
    "backbone.width": 64,
    "backbone.lr": 1e-3,
    "algo.width": 64,
    "algo.lr": 1e-3,
    "behaviour.num_steps": 2_400,
    "behaviour.seed_steps": 400,
    "behaviour.first_level": 450,
    "behaviour.level_every": 150,
    "behaviour.num_levels": 14,
    "behaviour.episodes_per_level": 20,
    "behaviour.batch_size": 64,
    "behaviour.width": 64,
    "behaviour.lr": 2e-3,
}
# Seconds, for tests: every code path, no result.
SMOKE = {
    "train.num_steps": 20,
    "train.meta_batch": 4,
    "train.batch_size": 8,
    "train.context_size": 16,
    "train.num_evals": 2,
    "backbone.width": 16,
    "algo.width": 16,
    "behaviour.num_steps": 60,
    "behaviour.seed_steps": 20,
    "behaviour.first_level": 20,
    "behaviour.level_every": 20,
    "behaviour.num_levels": 3,
    "behaviour.episodes_per_level": 4,
    "behaviour.batch_size": 8,
    "behaviour.width": 16,
    "eval.num_repeats": 1,
    "eval.random_episodes": 10,
}
# By algorithm, backbone or suite: applied after the layer above.
QUICK_OF = {
    "ctmrl": {"ctmrl.encoder_width": 64, "ctmrl.num_iterations": 40},
    "gentle": {
        "gentle.max_epochs": 40,
        "gentle.relabel_rows": 512,
        "gentle.relabel_every": 200,
    },
    "suite:gentle": {
        "train.context_draw": "uniform",  # one behaviour level: nothing to choose
        "train.num_steps": 6_000,
        "behaviour.num_steps": 4_000,
        "behaviour.first_level": 4_000,
        "behaviour.num_levels": 1,
        "behaviour.episodes_per_level": 100,
    },
}
SMOKE_OF = {
    "ctmrl": {"ctmrl.encoder_width": 16, "ctmrl.num_iterations": 10},
    "gentle": {
        "gentle.max_epochs": 2,
        "gentle.relabel_rows": 16,
        "gentle.relabel_every": 8,
        "gentle.ensemble_size": 2,
        "gentle.model_batch": 32,
    },
    "suite:gentle": {"behaviour.first_level": 60, "behaviour.num_levels": 1},
}


def layers(preset, algorithm, suite):
    """Returns the override layers of a preset; raises UserError for an unknown one."""
    if preset == "paper":
        return []
    tables = {"quick": (QUICK, QUICK_OF), "smoke": (SMOKE, SMOKE_OF)}
    if preset not in tables:
        raise errors.unknown("preset", preset, PRESETS)
    base, special = tables[preset]
    return [base, special.get(algorithm, {}), special.get(f"suite:{suite}", {})]


def choose(preset, on_accelerator):
    """Returns the preset that `auto` stands for: quick on a CPU, paper on an accelerator."""
    if preset not in PRESETS:
        raise errors.unknown("preset", preset, PRESETS)
    if preset != "auto":
        return preset
    return "paper" if on_accelerator else "quick"
