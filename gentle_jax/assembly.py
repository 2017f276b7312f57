"""Turns a config and a dataset into everything that a sweep needs."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from gentle_jax import (
    behaviour,
    evaluation,
    needs,
    presets,
    registry,
    rng,
    storage,
    training,
)
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import sweep as sweep_lib
from gentle_jax.envs import base
from gentle_jax.types import Algorithm, Env, HostArray, Protocol, Spec, Statistics, Transition

CONTEXTS_PER_TASK = 8  # of the embedding figure


def make_config(
    algorithm: str, preset: str = "quick", overrides: dict | None = None, **names: Any
) -> config_lib.ExperimentConfig:
    """Returns the ExperimentConfig of an algorithm.

    Args: preset, of `presets.PRESETS`; overrides, {dotted key: value}; names, other fields of a
    RunConfig, such as env, suite, backbone, num_seeds. Raises UserError for what does not exist.
    """
    preset = presets.choose(preset, on_accelerator=jax.default_backend() != "cpu")
    run = config_lib.RunConfig(algorithm=algorithm, preset=preset, **names)
    layers = presets.layers(preset, config_lib.fill_names(run))
    return config_lib.resolve(run, layers, overrides)


def make_env(
    name: str,
    suite: str = "ctmrl",
    physics: str = "",
    settings: base.EnvConfig | None = None,
    tasks: dict | None = None,
) -> Env:
    """Returns the Env `name` of a suite: its tasks, splits and horizon.

    Args: physics, of the family's modes (default: the published one); settings, an EnvConfig;
    tasks, a table of `task_tables` that stands for the suite's own. Raises UserError for an unknown
    name or suite.
    """
    return config_lib.make_env(name, suite, physics, settings or base.EnvConfig(), tasks)


def collect(config: config_lib.ExperimentConfig) -> dict[str, np.ndarray]:
    """Makes the behaviour data of a config in memory: what `make_sweep` takes.

    {field: array [task, level, episode, step, ...]}, the same numbers that the command
    `experiments.collect` keeps on a disk with progress, resume and checks of memory. Tasks are
    split over all local devices, as there.
    """
    env, settings = env_of(config), config.behaviour
    num_tasks = len(env.parameters)
    mesh = sweep_lib.make_mesh(num_tasks)
    init, advance, episodes = map(jax.jit, behaviour.make(env, settings, mesh))
    keys = behaviour.task_keys(settings, num_tasks)
    agents = sweep_lib.place(env.tasks, mesh), sweep_lib.place(keys, mesh)
    state, done, levels = init(*agents), 0, []
    for step in behaviour.levels(settings):
        state, _ = advance(*agents, state, jnp.int32(done), jnp.int32(step - done))
        stored, _, _ = episodes(*agents, state, jnp.int32(step))
        levels.append(sweep_lib.fetch(stored, num_tasks))
        done = step
    return {name: np.stack([level[name] for level in levels], axis=1) for name in levels[0]}


def make_sweep(
    config: config_lib.ExperimentConfig,
    data: dict[str, np.ndarray],
    points: Sequence[dict[str, float]] = ({},),
    devices: list | None = None,
    shard_data: bool = False,
) -> training.Sweep:
    """Returns the `training.Sweep` of a config: runs are grid points x seeds, point-major.

    Args: config, an ExperimentConfig; data, {field: array [task, level, episode, step, ...]} with
    the fields of `storage.FIELDS`; points, dicts of dotted key -> float that replace swept floats;
    devices, those that runs are split over (default: this process's); shard_data, whether each of
    them holds some of the tasks' data instead of a copy. Tasks are ordered training first. Raises
    UserError for data of other sizes, and for settings that algorithm or backbone cannot run with.
    """
    env = env_of(config)
    storage.check_shapes(data, env)
    dataset, env, scale = _prepared(config, env, data)
    return _sweep(config, dataset, env, scale, spec_of(config, env, dataset), points, devices,
                  shard_data)  # fmt: skip


def _sweep(config, dataset, env, scale, spec, points, devices=None, shard_data=False):
    """Returns the Sweep of a prepared Dataset, which may be of shapes: then it stays that."""
    algorithm, protocols = make_algorithm(config, env, spec)
    num_runs = len(points) * config.run.num_seeds
    mesh = sweep_lib.make_mesh(num_runs, devices)
    if not isinstance(dataset.episode_start, jax.ShapeDtypeStruct):
        if shard_data and mesh is not None:
            dataset = data_lib.split_tasks(dataset, mesh.size)
        dataset = sweep_lib.place_data(dataset, mesh)
    seeds = rng.run_keys(config.run.num_seeds, config.run.seed_offset)
    repeat = functools.partial(jnp.repeat, repeats=config.run.num_seeds)
    hp = jax.tree.map(repeat, config_lib.hyper_params(config, points))
    order = task_order(env)
    return training.Sweep(
        algorithm=algorithm,
        evaluate=evaluation.make_evaluate(algorithm, env, protocols, config.eval.num_repeats),
        episodes={name: protocol.num_episodes for name, protocol in protocols.items()},
        embed=evaluation.make_embed(algorithm, config.train, CONTEXTS_PER_TASK, env.horizon),
        data=dataset,
        tasks=sweep_lib.place_shared(jax.tree.map(lambda leaf: leaf[order], env.tasks), mesh),
        hp=sweep_lib.place(hp, mesh),
        run_keys=sweep_lib.place(jnp.tile(seeds, len(points)), mesh),
        num_evals=config.train.num_evals,
        env=env,
        scale=scale,
        mesh=mesh,
        num_runs=num_runs,
        spec=spec,
    )


def train(sweep: training.Sweep) -> dict:
    """Trains a Sweep in one compiled call; returns {"state", "returns", "costs", "metrics"}.

    See `sweep.fused`; `training.chunked` does the same with the host in between.
    """
    run = sweep_lib.fused(
        sweep.algorithm, sweep.evaluate, sweep.data, sweep.tasks, sweep.hp, sweep.num_evals,
        sweep.mesh, sweep.runs,
    )  # fmt: skip
    return run(sweep.run_keys)


def env_of(config: config_lib.ExperimentConfig) -> Env:
    """Returns the Env of a config; raises UserError for sizes that its suite does not have.

    Its observations are those of stored data: raw, and without the task's parameters.
    """
    run = config.run
    return config_lib.make_env(run.env, run.suite, run.physics, config.env, config.tasks)


def levels_of(train: config_lib.TrainConfig, num_levels: int) -> dict:
    """Returns the levels of a Dataset that rows are drawn from; UserError for missing ones."""
    find = lambda name: data_lib.levels_of(getattr(train, name), num_levels, f"train.{name}")
    return {"rl_levels": find("rl_data"), "context_levels": find("context_data")}


def _prepared(config, env, fields):
    """Returns (Dataset of all tasks, training tasks first; Env; (mean, std) of observations).

    Both are z-scored with `train.normalize_obs`; else the mean is 0 and the standard deviation 1.
    Then the task's parameters come behind the observations, where they are to be revealed.
    """
    mask = np.asarray(fields["mask"])
    episodes = {name: values for name, values in fields.items() if name != "mask"}
    dataset = data_lib.from_episodes(episodes, mask, config.train.timeout_is_terminal)
    dataset = dataset.replace(**levels_of(config.train, dataset.num_levels))
    scale = np.zeros(env.obs_dim, np.float32), np.ones(env.obs_dim, np.float32)
    dataset = data_lib.take_tasks(dataset, task_order(env))
    if config.train.normalize_obs:
        scale = data_lib.statistics(dataset, len(env.train_ids))
        dataset = data_lib.normalize(dataset, *scale)
    env = _seen(config, env, scale)
    if config.env.reveal_task:
        shown = env.tasks["revealed"][task_order(env)]
        dataset = data_lib.append(dataset, shown)
        zero = np.zeros(shown.shape[1], np.float32)
        scale = np.concatenate([scale[0], zero]), np.concatenate([scale[1], zero + 1.0])
    return dataset, env, scale


def env_as_seen(config: config_lib.ExperimentConfig, scale: tuple) -> Env:
    """Returns the Env of a config as its learners see it. Args: scale, of `training.Sweep`."""
    env = env_of(config)
    return _seen(config, env, tuple(np.asarray(part)[: env.obs_dim] for part in scale))


def _seen(config, env, scale):
    """Returns the Env as learners see it. Args: scale, (mean, std) of its own observations."""
    if config.train.normalize_obs:
        env = base.normalize(env, *scale)
    return base.reveal(env) if config.env.reveal_task else env


def of_data(sweep: training.Sweep) -> dict:
    """Returns what a Sweep knows of its data: a JSON-able dict, all that `without_data` needs."""
    spec, data = sweep.spec, sweep.data
    tasks, rows = data.rows.reward.shape
    return {
        "scale": [np.asarray(part).tolist() for part in sweep.scale],
        "statistics": [np.asarray(part).tolist() for part in spec.statistics],
        "rows_per_task": [spec.rows_per_task, spec.max_rows_per_task],
        # a split Dataset is padded with tasks
        "shape": [len(task_order(sweep.env)) if data.split > 1 else tasks, rows,
                  data.episode_start.shape[1], data.level_episodes, data.num_levels],
    }  # fmt: skip


def without_data(
    config: config_lib.ExperimentConfig, known: dict, points: Sequence[dict[str, float]] = ({},)
) -> training.Sweep:
    """Returns the Sweep of a config whose Dataset is of shapes: nothing can be trained with it.

    Args: known, of `of_data`; points as in `make_sweep`. It runs on one device.
    """
    mean, std = (np.array(part, np.float32) for part in known["scale"])
    env = env_as_seen(config, (mean, std))
    obs_mean, obs_std, *reward = known["statistics"]
    statistics = Statistics(np.array(obs_mean, np.float32), np.array(obs_std, np.float32), *reward)
    tasks, rows, starts, level_episodes, num_levels = known["shape"]
    wide = lambda *tail: jax.ShapeDtypeStruct((tasks, rows, *tail), jnp.float32)
    obs, none = wide(env.obs_dim), wide()
    leaves = Transition(obs, wide(env.action_dim), none, none, obs, none)
    start = jax.ShapeDtypeStruct((tasks, starts), jnp.int32)
    dataset = data_lib.Dataset(leaves, start, level_episodes, num_levels)
    dataset = dataset.replace(**levels_of(config.train, num_levels))
    spec = spec_of(config, env, dataset)
    least, most = known["rows_per_task"]
    spec = spec._replace(rows_per_task=least, max_rows_per_task=most, statistics=statistics)
    return _sweep(config, dataset, env, (mean, std), spec, points, jax.local_devices()[:1])


def check(config: config_lib.ExperimentConfig, imported: bool = False) -> tuple[int, int]:
    """Raises UserError for settings that no data could be trained with, before any is made.

    Args: imported, whether the data are: how many levels they have is not among the settings.
    Returns about how many bytes the dataset and one run's state take on a device.
    """
    env = env_of(config)
    env = base.reveal(env) if config.env.reveal_task else env
    wanted = storage.shapes(len(task_order(env)), config.behaviour, env)
    del wanted["mask"]  # packed away: a device holds real rows only
    dataset = data_lib.shapes(wanted)
    if not imported:
        levels_of(config.train, dataset.num_levels)
    algorithm, _ = make_algorithm(config, env, spec_of(config, env, dataset))
    hp = jax.tree.map(lambda leaf: leaf[0], config_lib.hyper_params(config))
    state = jax.eval_shape(algorithm.init, hp, rng.key(0), dataset)
    return storage.num_bytes(wanted), training.state_bytes(state)


def task_order(env: Env) -> Int[HostArray, " task"]:
    """Returns task ids, training tasks first; tasks of both sets (Cheetah-Dir) appear once."""
    extra = [i for i in env.test_ids if i not in set(env.train_ids.tolist())]
    return np.concatenate([env.train_ids, np.array(extra, int)]).astype(int)


def task_sets(env: Env) -> dict[str, Int[HostArray, " task"]]:
    """Returns {task set: positions in `task_order`}."""
    where = {int(task): position for position, task in enumerate(task_order(env))}
    sets = {"train": env.train_ids, "test": env.test_ids}
    return {name: np.array([where[int(i)] for i in ids], int) for name, ids in sets.items()}


def spec_of(config: config_lib.ExperimentConfig, env: Env, dataset: data_lib.Dataset) -> Spec:
    """Returns the Spec. Args: dataset, training tasks first; arrays, or shapes before there are."""
    num_train, most = len(env.train_ids), dataset.rows.reward.shape[1]
    if isinstance(dataset.episode_start, jax.ShapeDtypeStruct):
        least, statistics = most, data_lib.no_summary(env.obs_dim)
    else:
        rows = np.asarray(dataset.episode_start)[:num_train, -1]
        least, most = int(rows.min()), int(rows.max())
        statistics = data_lib.summary(dataset, num_train)
    return Spec(
        obs_dim=env.obs_dim,
        action_dim=env.action_dim,
        num_train_tasks=num_train,
        horizon=env.horizon,
        init=config.train.init,
        precision=config.train.precision,
        rows_per_task=least,
        max_rows_per_task=most,
        statistics=statistics,
    )


def make_algorithm(
    config: config_lib.ExperimentConfig, env: Env, spec: Spec
) -> tuple[Algorithm, dict[str, Protocol]]:
    """Returns (Algorithm, {name: Protocol}) of a config, for an Env and a Spec.

    Raises UserError for a protocol whose needs these settings do not meet.
    """
    module = registry.load("algorithm", config.run.algorithm)
    z_dim = getattr(module, "z_dim", lambda algo, train: train.latent_dim)
    backbone = registry.load("backbone", config.run.backbone)
    rl = backbone.make(config.backbone, z_dim(config.algo, config.train), spec)
    protocols = {
        name: registry.load("protocol", name).make(config.eval, env)
        for name in config.run.protocols
    }
    algorithm = module.make(config.algo, config.train, spec, rl)
    needs.check_built(protocols, config.run.algorithm, env, algorithm.rep)
    return algorithm, protocols
