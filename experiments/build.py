"""Turns a config and a dataset into everything that a sweep needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import evaluation, registry, rng, storage, suites, sweep, training
from gentle_jax.envs import base
from gentle_jax.types import Spec

CONTEXTS_PER_TASK = 8  # of the embedding figure


def make_task(config, points, fields, devices=None, shard_data=False):
    """Returns (Task, Env, (mean, std)) of a sweep: runs are grid points x seeds, point-major.

    Args: config, an ExperimentConfig; points, grid points of `--sweep`; fields, the dataset's
    arrays; devices, those that runs are split over (default: this process's); shard_data, whether
    each of them holds some of the tasks' data instead of a copy. Tasks are ordered training first,
    in the dataset and in the Env's task leaves; mean and std are those of observations (0 and 1 in
    suites that do not normalise). Raises UserError for settings that the algorithm or backbone
    cannot run with.
    """
    env = config_lib.make_env(config)
    storage.check_shapes(fields, env)
    mask = np.asarray(fields["mask"])
    episodes = {name: values for name, values in fields.items() if name != "mask"}
    dataset = data_lib.from_episodes(episodes, mask, config.train.timeout_is_terminal)
    order = task_order(env)
    mean, std = np.zeros(env.obs_dim, np.float32), np.ones(env.obs_dim, np.float32)
    if suites.get(config.run.suite).normalize_obs:
        mean, std = data_lib.statistics(data_lib.take_tasks(dataset, env.train_ids))
        dataset, env = data_lib.normalize(dataset, mean, std), base.normalize(env, mean, std)
    dataset = data_lib.take_tasks(dataset, order)
    algorithm, protocols = make_algorithm(config, env, dataset)
    native = protocols[config.run.protocols[0]]
    seeds = rng.run_keys(config.run.num_seeds, config.run.seed_offset)
    num_runs = len(points) * config.run.num_seeds
    mesh = sweep.make_mesh(num_runs, devices)
    if shard_data and mesh is not None:
        dataset = data_lib.split_tasks(dataset, mesh.size)
    hp = jax.tree.map(
        functools.partial(jnp.repeat, repeats=config.run.num_seeds),
        config_lib.hyper_params(config, points),
    )
    tasks = jax.tree.map(lambda leaf: leaf[order], env.tasks)
    task = training.Task(
        algorithm=algorithm,
        evaluate=evaluation.make_evaluate(algorithm, env, protocols, config.eval.num_repeats),
        episodes={name: protocol.num_episodes for name, protocol in protocols.items()},
        embed=evaluation.make_embed(algorithm, config.train, CONTEXTS_PER_TASK),
        trace=evaluation.make_trace(algorithm, env, native),
        data=sweep.place_data(dataset, mesh),
        tasks=sweep.place_shared(tasks, mesh),
        hp=sweep.place(hp, mesh),
        run_keys=sweep.place(jnp.tile(seeds, len(points)), mesh),
        num_evals=config.train.num_evals,
        mesh=mesh,
        num_runs=num_runs,
    )
    return task, env, (mean, std)


def check(config):
    """Raises UserError for settings that no data could be trained with, before any is made.

    Returns about how many bytes the dataset and one run's state take on a device.
    """
    env = config_lib.make_env(config)
    rows = config.behaviour.num_levels * config.behaviour.episodes_per_level * env.horizon
    algorithm, _ = _make_algorithm(config, env, rows)
    hp = jax.tree.map(lambda leaf: leaf[0], config_lib.hyper_params(config))
    state = training.state_bytes(jax.eval_shape(algorithm.init, hp, jax.random.key(0)))
    wanted = storage.shapes(len(task_order(env)), config.behaviour, env)
    del wanted["mask"]  # packed away: a device holds real rows only
    return storage.num_bytes(wanted), state


def task_order(env):
    """Returns task ids, training tasks first; tasks of both sets (Cheetah-Dir) appear once."""
    extra = [i for i in env.test_ids if i not in set(env.train_ids.tolist())]
    return np.concatenate([env.train_ids, np.array(extra, int)]).astype(int)


def task_sets(env):
    """Returns {task set: positions in `task_order`}."""
    where = {int(task): position for position, task in enumerate(task_order(env))}
    sets = {"train": env.train_ids, "test": env.test_ids}
    return {name: np.array([where[int(i)] for i in ids]) for name, ids in sets.items()}


def make_algorithm(config, env, dataset):
    """Returns (Algorithm, {name: Protocol}). Args: dataset, all tasks, training tasks first."""
    ends = np.asarray(dataset.episode_start)[: len(env.train_ids), -1]
    return _make_algorithm(config, env, int(ends.min()))


def _make_algorithm(config, env, rows_per_task):
    spec = Spec(
        env.obs_dim,
        env.action_dim,
        len(env.train_ids),
        rows_per_task,
        env.horizon,
        config.train.init,
        config.train.precision,
    )
    backbone = registry.load("backbone", config.run.backbone)
    rl = backbone.make(config.backbone, config.train.latent_dim, spec)
    algorithm = registry.load("algorithm", config.run.algorithm)
    protocols = {
        name: registry.load("protocol", name).make(config.eval, env)
        for name in config.run.protocols
    }
    return algorithm.make(config.algo, config.train, spec, rl), protocols
