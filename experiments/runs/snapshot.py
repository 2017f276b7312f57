"""Finished, interrupted or training runs as they were at a checkpoint."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import agents, assembly, errors, registry, storage, training
from gentle_jax import config as config_lib
from gentle_jax import explored as explored_lib
from gentle_jax import sweep as sweep_lib

from .. import collect
from . import npz_files, remote

EXPLORED = "explored.npz"


class Restored(NamedTuple):
    """A run as it was at a checkpoint."""

    config: config_lib.ExperimentConfig
    sweep: training.Sweep
    env: object  # normalised where the suite says so
    scale: tuple  # (mean, std) of observations
    state: object  # leaves [S, ...]
    done: int  # steps behind the checkpoint
    offline: object  # Dataset of the tasks; zeros where nothing of it is read


def reading(protocols):
    """Returns the protocols that read stored data of the tasks, such as `given_context`."""
    return [name for name in protocols if getattr(registry.load("protocol", name), "READS", ())]


def restore(folder, protocols, root, step=None):
    """Returns the Restored run, for some protocols, at a step; None: the newest checkpoint.

    The dataset is needed only where a protocol reads it; checkpoints are read without the run's
    lock, also while it trains. Args: root, as `--data`. Raises UserError for what is missing.
    """
    config, points, checksums = agents.read_config(folder)
    if not any((folder / "checkpoints").glob("[0-9]*")):
        raise no_checkpoint(folder)
    if reading(protocols):
        sweep = assembly.make_sweep(config, stored(config, checksums, root), points)
        offline = sweep.data
    else:
        sweep = assembly.without_data(config, agents.read_known(folder), points)
        offline = blank(sweep.data, len(assembly.task_order(sweep.env)))
    state, done = agents.read_state(folder, sweep, step)
    return Restored(config, sweep, sweep.env, sweep.scale, state, done, offline)


def stored(config, checksums, root):
    """Returns the fields of a run's dataset. Args: checksums, of imported data, else None."""
    dataset = collect.dataset_folder(config, root)
    if not storage.is_complete(dataset):
        raise errors.UserError(
            f"the run's dataset is not in {dataset}: pass --data with the root that the run used"
        )
    fields, meta = storage.load(dataset, config)
    if (meta["sha256"] if storage.source_of(meta) else None) != checksums:
        raise errors.UserError(
            f"the run was trained on other data than {dataset}: pass --data with the dataset's "
            f"folder"
        )
    return collect.part_of(fields, meta, config)[0] if storage.source_of(meta) else fields


def blank(dataset, num_tasks):
    """Returns a Dataset of zeros, one row a task, in the place of data that nothing reads."""
    rows = jax.tree.map(lambda x: jnp.zeros((num_tasks, 1, *x.shape[2:])), dataset.rows)
    starts = jnp.zeros((num_tasks, dataset.episode_start.shape[1]), jnp.int32)
    return dataset.replace(rows=rows, episode_start=starts)


def kept_contexts(folder, num_contexts):
    """Returns what `explored` left in a run folder, None where it has not, or not this many."""
    path = folder / EXPLORED
    if remote.is_remote(str(folder)) or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            z, done = arrays["z"], int(arrays["done"])
    except npz_files.DAMAGE:
        return None
    config, *_ = agents.read_config(folder)
    whole = z.ndim == 4 and z.shape[2] == num_contexts and done >= config.train.num_steps
    return z if whole else None


def explored(folder, num_contexts):
    """Returns z [run, test task, num_contexts, Z] of contexts that a run's policies collect.

    Kept in the run folder, which answers the next time. Neither the dataset nor the run's lock is
    needed. Raises UserError for a run whose agents cannot be read.
    """
    if remote.is_remote(str(folder)):
        raise errors.UserError(f"{folder} is not on this machine: copy the run here")
    z = kept_contexts(folder, num_contexts)
    if z is not None:
        return z
    restored = restore(pathlib.Path(folder), (), "")
    sweep, env = restored.sweep, restored.env
    explore = explored_lib.make(sweep.algorithm, env, num_contexts)
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[env.test_ids], env.tasks)
    over_runs = jax.jit(sweep_lib.over_runs(explore, 2))
    keys, done = sweep.run_keys[: sweep.runs], np.int32(restored.done)
    z = np.asarray(over_runs(restored.state, keys, tasks, done))
    npz_files.write(folder / EXPLORED, {"z": z, "done": restored.done})
    return z


def no_checkpoint(folder):
    """Returns the UserError for a run that has nothing to restore."""
    summary = folder / "summary.json"
    shards = storage.read_json(summary).get("shards") if summary.exists() else None
    if shards:
        return errors.UserError(
            f"{folder} was gathered, its checkpoints are in its shards: pass one of them, such as "
            f"--run={shards[0]['folder']}"
        )
    return errors.UserError(
        f"{folder} holds no checkpoint: give the run's command again, it trains on and keeps one"
    )
