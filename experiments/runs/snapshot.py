"""Finished or interrupted runs as they were at their newest checkpoint."""

import os
from typing import NamedTuple

import jax
import numpy as np

from experiments import collect
from experiments.host import computer
from gentle_jax import agents, assembly, checkpoint, errors, storage, training
from gentle_jax import config as config_lib
from gentle_jax import explored as explored_lib
from gentle_jax import sweep as sweep_lib


class Restored(NamedTuple):
    """A run as it was at its newest checkpoint."""

    config: config_lib.ExperimentConfig
    sweep: training.Sweep
    env: object  # normalised where the suite says so
    scale: tuple  # (mean, std) of observations
    state: object  # leaves [S, ...]
    done: int  # steps behind the checkpoint


def restore(folder, config, points, checksums, root):
    """Returns the Restored run. Args: root, as `--data`; raises UserError for what is missing."""
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
    if storage.source_of(meta):
        fields, _ = collect.part_of(fields, meta, config)
    sweep = assembly.make_sweep(config, fields, points)
    env, scale = sweep.env, sweep.scale
    like = training.carry_shapes(sweep)
    with computer.alone(folder), checkpoint.Checkpoints(folder / "checkpoints") as saves:
        kept = saves.restore(like)
    if kept is None:
        raise no_checkpoint(folder)
    return Restored(config, sweep, env, scale, kept[0]["state"], kept[1]["done"])


def explored(folder, num_contexts, root):
    """Returns z [seed, test task, num_contexts, Z] of contexts that a run's policies collect.

    Kept in the run folder, which answers the next time. Args: root, as `--data`. Raises UserError
    for a run that cannot be restored.
    """
    path = folder / "explored.npz"
    config, points, checksums = agents.read_config(folder)
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            if arrays["z"].shape[2] == num_contexts and arrays["done"] >= config.train.num_steps:
                return arrays["z"]
    restored = restore(folder, config, points, checksums, root)
    sweep, env = restored.sweep, restored.env
    explore = explored_lib.make(sweep.algorithm, env, num_contexts)
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[env.test_ids], env.tasks)
    over_runs = sweep_lib.over_runs(explore, 2)
    host = jax.tree.map(np.asarray, restored.state)
    z = np.asarray(jax.jit(over_runs)(host, sweep.run_keys, tasks, np.int32(restored.done)))
    whole = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(whole, z=z, done=restored.done)
    whole.replace(path)
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
