"""Size presets: same method, other sizes. Keys are dotted; a test checks that every one exists.

`paper` changes nothing: the defaults are the published sizes. Layers apply in the order of
`layers`.
"""

import dataclasses

from gentle_jax import errors, registry
from gentle_jax.config import RunConfig

PRESETS = ("auto", "paper", "fast", "quick", "smoke")
# What compiles for longer than it runs is compiled lightly: other bits, a third less time
COMPILED_LIGHTLY = ("smoke",)

# A run that ends within minutes on two CPU cores. Some 8,000 steps instead of 65,000 to 200,000
# leave no time for the released initialisation (signals of small inputs shrink by 0.4 a layer), for
# a target that lags by 200 steps, or for a constant small rate; episodes cut by the clock are not
# taken for ends, because plain SAC learns to flee to where episodes happened to end.
QUICK = {
    "train.num_steps": 8_000,
    "train.num_evals": 5,
    "train.meta_batch": 30,
    "train.batch_size": 24,
    "train.context_size": 64,
    "train.context_draw": "level",
    "train.latent_dim": 5,
    "train.init": "he",
    "train.final_lr": 0.02,
    "train.timeout_is_terminal": False,
    "backbone.width": 64,
    "backbone.lr": 8e-3,
    "brac_sac.policy_lr": 4e-3,  # 8e-3 lost one seed in eight to a saturated policy
    "backbone.tau": 0.02,
    "brac_sac.reward_scale": 30.0,
    "sac.policy_lr": 4e-3,
    "sac.reward_scale": 6.0,  # brac_sac's, as 0.2 of its entropy weight
    "iql.policy_lr": 4e-3,
    "iql.reward_scale": 10.0,
    "algo.width": 64,
    "algo.lr": 8e-3,
    # 14 levels, the first four of random actions: contexts in tests begin with random episodes, too
    "behaviour.num_steps": 2_800,
    "behaviour.seed_steps": 800,
    "behaviour.first_level": 200,
    "behaviour.level_every": 200,
    "behaviour.num_levels": 14,
    "behaviour.episodes_per_level": 20,
    "behaviour.batch_size": 64,
    "behaviour.width": 64,
    "behaviour.lr": 1.5e-3,
}
# For tests: takes seconds, runs every code path, learns nothing.
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
    "eval.num_pairs": 10,
    "eval.random_episodes": 10,
}
# For an accelerator: published training, on data of a lighter SAC, which takes about a fiftieth of
# the published one's arithmetic.
FAST = {
    "behaviour.batch_size": 256,
    "behaviour.width": 256,
    "behaviour.lr": 3e-4,
    "behaviour.num_envs": 50,
    "behaviour.updates_per_step": 0.2,
}
# What a suite changes in the tables above.
OF_SUITE = {
    "quick:gentle": {
        "train.meta_batch": 10,
        "train.batch_size": 64,
        "train.context_draw": "uniform",  # one behaviour level: nothing to choose
        "train.num_steps": 5_000,
        "td3_bc.lr": 3e-3,
        "td3_bc.bc_weight": 1.0,  # 0.25 lost 0.07 on data of all levels and won nothing on experts'
        "behaviour.num_steps": 4_000,
        "behaviour.seed_steps": 400,
        "behaviour.first_level": 4_000,
        "behaviour.num_levels": 1,
        "behaviour.episodes_per_level": 100,
    },
    "smoke:gentle": {"behaviour.first_level": 60, "behaviour.num_levels": 1},
}


def layers(preset: str, run: RunConfig) -> list[dict]:
    """Returns the override layers of a preset for a run whose names are filled in.

    The preset's own sizes, the suite's, the environment's `PRESETS`, the algorithm's; each may have
    entries `preset` and `preset:X`, X a fidelity, suite or environment. All but the last are for
    every algorithm: what they say of `algo` holds where its Config has such a field. Raises
    UserError for an unknown preset.
    """
    if preset == "paper":
        return []
    tables = {"fast": FAST, "quick": QUICK, "smoke": SMOKE}
    if preset not in tables:
        raise errors.unknown("preset", preset, PRESETS)
    keys = (preset, *(f"{preset}:{name}" for name in (run.fidelity, run.suite, run.env)))
    algorithm = registry.load("algorithm", run.algorithm)
    of_env = getattr(registry.load("environment", run.env), "PRESETS", {})
    of_all = [tables[preset], *(table.get(key, {}) for table in (OF_SUITE, of_env) for key in keys)]
    of_all = [for_all(layer, algorithm.Config) for layer in of_all]
    return [*of_all, *(getattr(algorithm, "PRESETS", {}).get(key, {}) for key in keys)]


def for_all(layer: dict, config: type) -> dict:
    """Returns a layer for all algorithms without what it says of `algo` that a Config lacks."""
    fields = {f"algo.{field.name}" for field in dataclasses.fields(config)}
    known = lambda key: not key.startswith("algo.") or key in fields
    return {key: value for key, value in layer.items() if known(key)}


def choose(preset: str, on_accelerator: bool) -> str:
    """Returns the preset that `auto` stands for; any other stands for itself.

    Raises UserError for an unknown preset.
    """
    if preset not in PRESETS:
        raise errors.unknown("preset", preset, PRESETS)
    if preset != "auto":
        return preset
    return "paper" if on_accelerator else "quick"
