"""Minari 0.5: exports a dataset as `<suite>/<env>/task-<k>/level-<c>-v0`, and reads that back.

Source: docs/methods/data.md, "Minari". One Minari dataset is one task at one level. What Minari has
no place for is in a dataset's metadata under `gentle_jax` (the task table, the level's step, the
identity) and in `infos`, whose first entry is the reset's: context_reward, and next_obs where it is
not the next row's obs. An episode's `slot` is its number; missing episodes leave gaps.
"""

import contextlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np

from gentle_jax import errors, task_tables
from gentle_jax.interop import table
from gentle_jax.storage import Fields
from gentle_jax.types import Env

OPTIONS = ("steps",)
KEY = "gentle_jax"
CARRIED = ("tasks", "reference_return", "random_return", "expert_return")  # entries of meta.json


def require() -> ModuleType:
    """Imports Minari; raises UserError where it is not installed."""
    try:
        import h5py  # noqa: F401  the format that datasets are stored in
        import minari
    except ImportError as error:
        raise errors.UserError(
            f"Minari is not installed ({error}): run `pip install -e '.[data]'` in the project"
        ) from None
    return minari


def name_of(suite: str, env: str, task: int, level: int) -> str:
    """Returns the dataset id of a task at a level."""
    return f"{suite}/{env}/task-{task}/level-{level}-v0"


@contextlib.contextmanager
def _root(folder):
    """Lets Minari keep its datasets below a folder; only an environment variable can say so."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def export(
    fields: Fields,
    meta: dict,
    folder: pathlib.Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes a dataset below `folder`, a Minari root; returns how many Minari datasets it is.

    Args: fields and meta, as `storage.load` returns them; progress(done, total), called for each.
    Raises UserError if the folder has data of this environment already.
    """
    minari = require()
    suite, env = meta["identity"]["suite"], meta["identity"]["env"]
    if (folder / suite / env).exists():
        raise errors.UserError(f"{folder / suite / env} exists: pass another --to, or delete it")
    num_tasks, num_levels, num_episodes = fields["mask"].shape[:3]
    spaces = {
        "observation_space": _box(np.inf, fields["obs"].shape[-1]),
        "action_space": _box(1.0, fields["action"].shape[-1]),
    }
    shared = {
        "suite": suite, "env": env, "identity": meta["identity"], "levels": meta["levels"],
        "episodes": num_episodes, **{key: meta[key] for key in CARRIED},
        "task_table": meta.get("task_table"),
    }  # fmt: skip
    with _root(folder):
        for task in range(num_tasks):
            for level in range(num_levels):
                columns = {k: np.array(values[task, level]) for k, values in fields.items()}
                buffers, slots = _buffers(columns)
                with warnings.catch_warnings():  # of the author and the link, which we cannot know
                    warnings.simplefilter("ignore", UserWarning)
                    dataset = minari.create_dataset_from_buffers(
                        name_of(suite, env, task, level), buffers, **spaces,
                        algorithm_name=f"behaviour agent at step {meta['levels'][level]}",
                        description=f"Task {task} of {env}, suite {suite}, one behaviour level.",
                    )  # fmt: skip
                dataset.storage.update_episode_metadata([{"slot": slot} for slot in slots])
                here = {"task": task, "level": level, "step": meta["levels"][level]}
                dataset.storage.update_metadata({KEY: json.dumps(shared | here)})
                progress(task * num_levels + level + 1, num_tasks * num_levels)
    return num_tasks * num_levels


def _box(bound, width):
    """Returns a float32 Box of one bound; Gymnasium comes with Minari."""
    from gymnasium import spaces

    return spaces.Box(-bound, bound, (width,), np.float32)


def _buffers(columns):
    """Returns (episode buffers, their slots) of one task at one level."""
    from minari.data_collector import EpisodeBuffer

    buffers, slots = [], []
    for slot, length in enumerate(columns["mask"].sum(-1).astype(int)):
        if length == 0:
            continue
        row = {name: values[slot, :length] for name, values in columns.items()}
        terminations = row["terminal"] > 0
        truncations = np.zeros(length, bool)
        truncations[-1] = not terminations[-1]
        reset = lambda values: np.concatenate([np.zeros_like(values[:1]), values])
        infos = {"context_reward": reset(row["context_reward"])}
        if not np.array_equal(row["next_obs"][:-1], row["obs"][1:]):
            infos["next_obs"] = reset(row["next_obs"])
        observations = np.concatenate([row["obs"], row["next_obs"][-1:]])
        buffers.append(
            EpisodeBuffer(
                observations=observations, actions=row["action"], rewards=row["reward"],
                terminations=terminations, truncations=truncations, infos=infos,
            )
        )  # fmt: skip
        slots.append(slot)
    return buffers, slots


def read(folder: pathlib.Path, env: Env, options: table.Options) -> table.Table:
    """Returns the Table of an export below `folder`; raises UserError for anything else."""
    minari = require()
    path_of = lambda task, level, *_: folder / name_of(env.suite, env.name, task, level)
    first = _open(minari, path_of(0, 0))[0]
    levels = table.choose_levels(first["levels"], options.steps, folder)
    fields = table.empty(env, len(levels), first["episodes"])
    missing = 0
    for task in range(len(env.parameters)):
        for index, step in enumerate(levels):
            path = path_of(task, first["levels"].index(step))
            described, episodes = _open(minari, path)
            _check(described, first, env, path)
            missing += first["episodes"] - len(episodes)
            for slot, columns in episodes.items():
                table.put(fields, (task, index, slot), columns, path, env)
    notes = table.finish(fields, env, lambda task, level, _: path_of(task, level), "stored")
    counts = f"{len(env.parameters)} tasks, {len(levels)} levels, {first['episodes']} episodes each"
    gaps = [f"{missing} episodes were missing when it was exported"] if missing else []
    known = {key: first[key] for key in CARRIED[1:]}
    known["expert_return"] = [known["expert_return"][first["levels"].index(s)] for s in levels]
    source = {"format": "minari", "steps": levels, "exported": first["identity"]}
    return table.Table(fields, levels, [counts, *gaps, *notes], source, known)


def tasks_of(folder: pathlib.Path, env: Env, options: table.Options) -> dict | None:
    """Returns the table of tasks that an export carries; None where they are its suite's."""
    del options
    path = folder / name_of(env.suite, env.name, 0, 0)
    stored = _open(require(), path)[0].get("task_table")
    if stored is None:
        return None
    try:
        leaves = {name: np.asarray(leaf) for name, leaf in stored["leaves"].items()}
        ids = [np.asarray(stored[name]) for name in task_tables.SPLIT]
        return task_tables.checked(leaves, *ids, str(stored["from"]), env, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise errors.UserError(
            f"{path} has no table of tasks that can be read ({type(error).__name__}): pass another "
            f"--from, or leave the folder's tasks out with --tasks=FILE"
        ) from None


def _open(minari, path):
    """Returns (what we wrote about a dataset, {slot: columns}); raises UserError if not ours."""
    try:
        data = minari.MinariDataset(path / "data")
        described = json.loads(data.storage.metadata[KEY])
        if not {"identity", "levels", "episodes", *CARRIED} <= set(described):
            raise ValueError("incomplete")
        slots = [int(m["slot"]) for m in data.storage.get_episode_metadata(range(len(data)))]
        if len(set(slots) & set(range(described["episodes"]))) < len(slots):
            raise ValueError("slots")
        episodes = zip(slots, data.iterate_episodes(), strict=True)
        return described, {slot: _columns(episode) for slot, episode in episodes}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, AssertionError) as error:
        raise errors.UserError(
            f"{path} is not an export of `{errors.command('data')} export` that this version "
            f"can read ({type(error).__name__}): pass another --from, --env or --suite"
        ) from None


def _check(described, first, env, path):
    """Raises UserError unless one dataset belongs to the same export, of the same tasks."""
    tasks = {name: np.asarray(leaf).tolist() for name, leaf in env.tasks.items()}
    if described["tasks"] != tasks:
        raise errors.UserError(
            f"{path} was exported with other task parameters than {env.name} of suite {env.suite} "
            f"has here: pass the --env and --suite that the data are of"
        )
    if any(described[key] != first[key] for key in ("identity", "levels", "episodes")):
        raise errors.UserError(f"{path} is of another export than the first task: keep them apart")


def _columns(episode):
    """Returns {field: array [T, ...]} of a Minari episode."""
    observations, infos = episode.observations, episode.infos
    return {
        "obs": observations[:-1],
        "next_obs": infos["next_obs"][1:] if "next_obs" in infos else observations[1:],
        "action": episode.actions,
        "reward": episode.rewards,
        "context_reward": infos["context_reward"][1:],
        "terminal": episode.terminations.astype(np.float32),
    }
