"""Finished or interrupted runs as they were at their newest checkpoint."""

from typing import NamedTuple

import jax
import numpy as np

from gentle_jax import agents, assembly, checkpoint, errors, storage, training
from gentle_jax import config as config_lib
from gentle_jax import explored as explored_lib
from gentle_jax import sweep as sweep_lib

from .. import collect
from ..host import computer
from . import npz_files, remote

EXPLORED = "explored.npz"


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
    config, points, _ = agents.read_config(folder)
    sweep = assembly.without_data(config, agents.read_known(folder), points)
    state, done = agents.read_state(folder, sweep, None)
    explore = explored_lib.make(sweep.algorithm, sweep.env, num_contexts)
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[sweep.env.test_ids], sweep.env.tasks)
    over_runs = jax.jit(sweep_lib.over_runs(explore, 2))
    z = np.asarray(over_runs(state, sweep.run_keys[: sweep.runs], tasks, np.int32(done)))
    npz_files.write(folder / EXPLORED, {"z": z, "done": done})
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
