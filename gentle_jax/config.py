"""Frozen configs: defaults in code, layers of dotted overrides, strict keys, fingerprints.

Order of layers, later wins: dataclass defaults (the paper's values), the suite's normaliser, the
environment's settings for the suite, the algorithm's for suite and environment, its fidelity, its
settings for all three, the size preset, the user. Floats of the sections `algo` and `backbone` are
leaves of `hp`, unless marked static: they can be swept in one program.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gentle_jax import errors, needs, registry, suites
from gentle_jax.behaviour_levels import check_levels
from gentle_jax.envs.base import DERIVE_CONSTANTS, NOT_OF_DATA, EnvConfig, shorten, with_tasks
from gentle_jax.types import Env, HyperParams

CPU_PHYSICS = "mujoco"  # of `physics.MODES`: no other device has it
SECTIONS = ("run", "env", "train", "behaviour", "eval", "algo", "backbone")
FIDELITIES = ("paper", "release")
CONTEXT_DRAWS = ("uniform", "level", "episodes")
TASK_DRAWS = ("distinct", "replace")
INITS = ("rlkit", "he")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
MAY_BE_ZERO = (  # every other whole number is a size, a count or a period
    "behaviour.seed", "behaviour.seed_steps", "eval.context_episodes", "eval.exploration_steps",
    "env.num_train", "env.num_test", "env.horizon", "behaviour.replay_rows",
    "eval.num_candidates", "eval.fragment_steps",
)  # fmt: skip
METRICS = ("final", "all", "first")
NATIVE = "native"  # the protocol that is reported first


def static(default: float) -> Any:
    """Returns a float field that shapes depend on, so that it cannot be swept.

    Typed as what it stands for, like `dataclasses.field`.
    """
    return dataclasses.field(default=default, metadata={"static": True})


def from_zero(default: int) -> Any:
    """Returns a whole-number field of an algorithm or backbone that may be 0."""
    return dataclasses.field(default=default, metadata={"from_zero": True})


def by_fidelity(default: str) -> Any:
    """Returns a field of an algorithm that only `--fidelity` sets."""
    return dataclasses.field(default=default, metadata={"by_fidelity": True})


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Names and counts: what is run, how often."""

    algorithm: str = next(iter(registry.ALGORITHMS))
    suite: str = "ctmrl"
    env: str = "point_robot"
    backbone: str = ""  # "" = the suite's, or the environment's for the preset
    fidelity: str = ""  # "" = the algorithm's default
    preset: str = "quick"
    physics: str = ""  # "" = published for preset `paper`, else the last one that the device has
    num_seeds: int = 8
    seed_offset: int = 0
    protocols: tuple = ()  # () = every protocol


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Meta-training of every algorithm.

    Source: docs/methods/backbones.md, "Joint step"; docs/methods/data.md, "Sampling".
    """

    num_steps: int = 65_000  # gradient steps of the main stage
    meta_batch: int = 16  # T, tasks per step
    task_draw: str = "distinct"  # or "replace"; "distinct" falls back when T > training tasks
    batch_size: int = 256  # B, RL transitions per task
    context_size: int = 1024  # C, context transitions per task
    context_draw: str = "uniform"  # all rows; or rows ("level") or "episodes" of a few levels
    context_levels: int = 1  # how many levels those are
    rl_data: str = ""  # FIRST:END, the behaviour levels that RL rows are of; "" = all
    context_data: str = ""  # the same of contexts, in training and in tests
    latent_dim: int = 20  # Z
    final_lr: float = 1.0  # share of `lr` and `policy_lr` left at the end; linear decay
    init: str = "rlkit"  # both releases' hidden layers; or "he"
    precision: str = "float32"  # of matrix products; or "tensorfloat32" where the device has it,
    #                             "bfloat16", activations too. All else is float32 in any
    normalize_obs: bool = False  # z-scores of the training tasks' rows; what the suite says
    normalize_rewards: bool = False  # a backbone's, divided by their spread in training tasks
    timeout_is_terminal: bool = True  # both releases do not bootstrap over the time limit
    num_evals: int = 10  # evaluations along training, the last one included


@dataclasses.dataclass(frozen=True)
class BehaviourConfig:
    """Online SAC that makes the data; defaults are those of the point robots of CTMRL.

    Source: docs/methods/data.md, "Behaviour agents".
    """

    num_steps: int = 5_000  # environment steps per task, one update each after `seed_steps`
    seed_steps: int = 2_000  # uniform random actions first
    first_level: int = 2_200  # environment steps before episodes are stored for the first time
    level_every: int = 200
    episodes_per_level: int = 50
    num_levels: int = 14
    batch_size: int = 1024
    width: int = 1024
    lr: float = 1e-4
    discount: float = 0.99
    tau: float = 0.005
    num_envs: int = 1  # copies of every task that step side by side; steps count all of them
    updates_per_step: float = 1.0  # the update-to-data ratio, once `seed_steps` are over
    replay_rows: int = 0  # of every task's ring buffer; 0 = all steps
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Test budgets in environment steps; 0 means one horizon.

    Source: docs/methods/protocols.md, "Budgets and metrics".
    """

    online_steps: int = 400  # B of random_then_policy and online
    context_episodes: int = 1  # X: z stays the prior until X * H scored steps were taken
    scored_steps: int = 400  # budget of given_context and one_shot
    exploration_steps: int = 0  # one_shot's unscored transitions
    context_resample: bool = True  # one_shot: bootstrap H rows per episode, as GENTLE's release
    num_repeats: int = 2
    metric: str = "final"  # of the table: "final", "all" or "first" episode(s)
    random_episodes: int = 200  # per task, for the random policy's return
    reference_episodes: int = 10  # in_distribution: at z of training tasks, chosen each from
    num_candidates: int = 0  # so many of them; 0 = 20, or all where there are fewer
    quantifier: str = "return"  # of the best episode; or "prediction_error", "ensemble"
    num_queries: int = 10  # noisy_preferences: answers, each of which is wrong with probability
    query_noise: float = 0.2
    num_pairs: int = 100  # of fragments, that a question is chosen from
    fragment_steps: int = 0  # at most one horizon; 0 = 64, or one horizon where that is shorter


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One resolved experiment."""

    run: RunConfig
    env: EnvConfig
    train: TrainConfig
    behaviour: BehaviourConfig
    eval: EvalConfig
    algo: Any  # the Config of the chosen algorithm's module
    backbone: Any  # the Config of the chosen backbone's module
    tasks: dict | None = None  # a table of `task_tables`; None: the suite's own


def _kinds(run):
    """Returns {section: its class}, all but `run`."""
    modules = registry.load("algorithm", run.algorithm), registry.load("backbone", run.backbone)
    kinds = (EnvConfig, TrainConfig, BehaviourConfig, EvalConfig, *(m.Config for m in modules))
    return dict(zip(SECTIONS[1:], kinds, strict=True))


def _apply(sections, layer, names, source):
    """Applies dotted overrides in place; skips keys of algorithms and backbones not chosen."""
    for key, value in layer.items():
        section, _, field = key.partition(".")
        if section in names:
            section = names[section]
        elif section in registry.ALGORITHMS or section in registry.BACKBONES:
            continue
        if section not in sections or section == "run":
            raise errors.unknown(
                f"section in {source}", section, [s for s in sections if s != "run"]
            )
        known = {f.name for f in dataclasses.fields(sections[section])}
        if field not in known:
            raise errors.unknown(f"key in {source}", key, [f"{section}.{f}" for f in sorted(known)])
        sections[section] = dataclasses.replace(sections[section], **{field: value})


def fill_names(run: RunConfig) -> RunConfig:
    """Fills in backbone, fidelity and protocols; UserError for names that do not exist or fit.

    By default every protocol that can run, the native one first: the algorithm's `PROTOCOL` where
    its paper has a test of its own, else the suite's. NATIVE stands for it.
    """
    suite = suites.get(run.suite)
    algorithm = registry.load("algorithm", run.algorithm)
    modes = _environment(run.env, run.suite).PHYSICS
    physics = run.physics or (modes[0] if run.preset == "paper" else usable_physics(modes)[-1])
    if physics not in modes:
        raise errors.unknown(f"physics of {run.env}", physics, modes)
    backbone = run.backbone or suites.backbone(run.suite, run.env, run.preset)
    registry.load("backbone", backbone)
    fidelity = run.fidelity or getattr(algorithm, "DEFAULT_FIDELITY", "paper")
    if fidelity not in FIDELITIES:
        raise errors.unknown("fidelity", fidelity, FIDELITIES)
    native = (getattr(algorithm, "PROTOCOL", ""), suite.protocol)
    rank = lambda name: native.index(name) if name in native else len(native)
    able = sorted(needs.able(run.algorithm, run.env), key=rank)
    asked = (able[0] if name == NATIVE else name for name in run.protocols or able)
    protocols = tuple(dict.fromkeys(asked))
    needs.check(protocols, run.algorithm, run.env)
    return dataclasses.replace(
        run, backbone=backbone, fidelity=fidelity, protocols=protocols, physics=physics
    )


def usable_physics(modes: Sequence[str]) -> list[str]:
    """Returns those of an environment's modes that the default device has."""
    others = [mode for mode in modes if mode != CPU_PHYSICS]
    return list(modes) if others == [*modes] or jax.default_backend() == "cpu" else others


def _environment(name, suite):
    """Returns the module of an environment; raises UserError if it is not in the suite."""
    suites.get(suite)
    module = registry.load("environment", name)
    if suite not in module.SETTINGS:
        raise errors.UserError(
            f"environment {name!r} is not in suite {suite!r}: it is in "
            f"{', '.join(module.SETTINGS)}; choose --suite or --env accordingly"
        )
    return module


def make_env(
    name: str, suite: str, physics: str, settings: EnvConfig, tasks: dict | None = None
) -> Env:
    """Returns the Env of a suite; raises UserError for what it does not have.

    Args: physics, "" for the published one; tasks, a table that stands for the suite's own.
    """
    module = _environment(name, suite)
    env = module.make(suite, physics or module.PHYSICS[0], settings)
    return shorten(env if tasks is None else with_tasks(env, tasks), settings)


def resolve(
    run: RunConfig,
    preset_layers: Sequence[dict] = (),
    overrides: dict | None = None,
    tasks: dict | None = None,
) -> ExperimentConfig:
    """Returns the config of a run, all layers applied.

    Args: preset_layers, {dotted key: value} of the size preset; overrides, the user's; tasks, a
    table of `task_tables`. Raises UserError for an unknown name, section or key, or an impossible
    value.
    """
    asked, run = run.protocols, fill_names(run)
    algorithm = registry.load("algorithm", run.algorithm)
    sections = {"run": run} | {name: kind() for name, kind in _kinds(run).items()}
    names = {run.algorithm: "algo", run.backbone: "backbone"}
    layers = [("suite", {"train.normalize_obs": suites.get(run.suite).normalize_obs})]
    layers.append(("environment settings", _environment(run.env, run.suite).SETTINGS[run.suite]))
    published = getattr(algorithm, "SETTINGS", {})
    layers.append(("algorithm settings", published.get((run.suite, run.env), {})))
    layers.append(("fidelity", getattr(algorithm, "FIDELITY", {}).get(run.fidelity, {})))
    of_fidelity = published.get((run.suite, run.env, run.fidelity), {})
    layers.append(("algorithm settings", of_fidelity))
    layers += [("preset", layer) for layer in preset_layers]
    layers.append(("--config", overrides or {}))
    _refuse_fidelity(algorithm, overrides or {})
    for source, layer in layers:
        _apply(sections, layer, names, source)
    if not asked:
        protocols = needs.served(run.protocols, run.algorithm, sections["algo"])
        sections["run"] = dataclasses.replace(run, protocols=protocols)
    config = ExperimentConfig(**sections, tasks=tasks)
    validate(config)
    return config


def _refuse_fidelity(algorithm, overrides):
    """Raises UserError where a user overrides what a fidelity stands for."""
    for field in dataclasses.fields(algorithm.Config):
        name = f"algo.{field.name}"
        if field.metadata.get("by_fidelity") and name in overrides:
            raise errors.UserError(
                f"{name} is {overrides[name]!r}: the fidelity chooses it; leave it out and pass "
                f"--fidelity={' or --fidelity='.join(FIDELITIES)}"
            )


def validate(config: ExperimentConfig) -> None:
    """Raises UserError for values that no program could run with."""
    for name, value in (
        ("--num_seeds", config.run.num_seeds),
        ("--num_steps (train.num_steps)", config.train.num_steps),
    ):
        if value < 1:
            raise errors.UserError(f"{name} is {value}: expected at least 1; pass a larger number")
    for section in SECTIONS[1:]:
        for field, value in dataclasses.asdict(getattr(config, section)).items():
            name = f"{section}.{field}"
            metadata = type(getattr(config, section)).__dataclass_fields__[field].metadata
            if isinstance(value, float) and not math.isfinite(value):
                raise errors.UserError(f"{name} is {value}: expected a finite number")
            if field.endswith("lr") and value < 0:
                raise errors.UserError(f"{name} is {value}: expected 0 or more")
            least = 0 if name in MAY_BE_ZERO or metadata.get("from_zero") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise errors.UserError(
                    f"{name} is {value}: expected at least {least}; pass a larger number"
                )
    if config.run.seed_offset < 0:
        raise errors.UserError(f"--seed_offset is {config.run.seed_offset}: expected 0 or more")
    for name, allowed in (
        ("train.context_draw", CONTEXT_DRAWS), ("train.task_draw", TASK_DRAWS),
        ("train.init", INITS), ("train.precision", PRECISIONS), ("eval.metric", METRICS),
        ("env.derive_constants", DERIVE_CONSTANTS),
    ):  # fmt: skip
        section, _, field = name.partition(".")
        value = getattr(getattr(config, section), field)
        if value not in allowed:
            raise errors.unknown(name, value, allowed)
    if not 0.0 <= config.train.final_lr <= 1.0:
        raise errors.UserError(
            f"train.final_lr is {config.train.final_lr}: expected 0 to 1, the share left at the end"
        )
    check_levels(config.behaviour)


def to_dict(config: ExperimentConfig) -> dict:
    """Returns the config as plain nested dicts (tuples become lists), ready for JSON."""
    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    if config.tasks is None:
        del tree["tasks"]  # as before there were others than the suite's
    return tree


def from_dict(tree: dict) -> ExperimentConfig:
    """Returns the config that `to_dict` wrote; UserError for other or missing keys: no defaults."""
    try:
        whole = lambda kind, v: kind(**{f.name: v[f.name] for f in dataclasses.fields(kind)} | v)
        run = whole(RunConfig, tree["run"] | {"protocols": tuple(tree["run"]["protocols"])})
        sections = {name: whole(kind, tree[name]) for name, kind in _kinds(run).items()}
    except (KeyError, TypeError) as error:
        raise errors.UserError(
            f"these settings are of another version of the code ({error}): use that version"
        ) from None
    return ExperimentConfig(run=run, **sections, tasks=tree.get("tasks"))


def fingerprint(tree: Any) -> str:
    """Returns 12 hex digits that change when any value of a JSON-able tree changes."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def data_identity(config: ExperimentConfig) -> dict:
    """Returns what a dataset depends on: a JSON-able dict, compared before a dataset is used."""
    environment = dataclasses.asdict(config.env)
    environment = {name: value for name, value in environment.items() if name not in NOT_OF_DATA}
    given = {} if config.tasks is None else {"tasks": task_digest(config.tasks)}
    return {
        "env": config.run.env,
        "suite": config.run.suite,
        **given,
        "physics": config.run.physics,
        "environment": environment,
        "behaviour": dataclasses.asdict(config.behaviour),
        "random_episodes": config.eval.random_episodes,  # behind meta.json's random_return
    }


def task_digest(table: dict) -> str:
    """Returns the fingerprint of a table of tasks: of parameters and split, not of its source."""
    return fingerprint({name: table[name] for name in ("leaves", "train_ids", "test_ids")})


def swept_fields(config: ExperimentConfig) -> dict[str, float]:
    """Returns {dotted key: default} of every float that may be swept."""
    defaults = {}
    for section in ("algo", "backbone"):
        values = getattr(config, section)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, float) and not field.metadata.get("static"):
                defaults[f"{section}.{field.name}"] = value
    return defaults


def hyper_params(config: ExperimentConfig, points: Sequence[dict] = ({},)) -> HyperParams:
    """Returns {section: {name: float32 [len(points)]}}, one row per grid point.

    Args: points, {dotted key: value} that replace the config's values.
    """
    tree = {"algo": {}, "backbone": {}}
    for key, default in swept_fields(config).items():
        section, _, name = key.partition(".")
        tree[section][name] = jnp.array([p.get(key, default) for p in points], jnp.float32)
    return tree
