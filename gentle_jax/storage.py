"""Datasets on disk: one folder with `meta.json` and one memory-mapped `.npy` per field.

Arrays are [task, level, episode, step, ...] float32 with `mask` for short episodes. `meta.json` is
written last, names the configuration and the sha256 of every file, and has a checksum of its own:
a folder without it is unfinished, and a file that does not match it is an error, never a silent
reuse.
"""

import hashlib
import json
import os
import pathlib

import numpy as np
from jaxtyping import Float

from gentle_jax import config as config_lib
from gentle_jax import errors, json_files
from gentle_jax.config import BehaviourConfig, ExperimentConfig
from gentle_jax.types import Env, HostArray

SCHEMA = 2
FIELDS = ("obs", "action", "reward", "context_reward", "next_obs", "terminal", "mask")

Folder = str | pathlib.Path
Shapes = dict[str, tuple[int, ...]]  # field -> shape
Fields = dict[str, Float[HostArray, "task level episode step ..."]]  # of FIELDS
LevelFields = dict[str, Float[HostArray, "task episode step ..."]]

write_json, read_json = json_files.write, json_files.read


def folder_of(root: Folder, config: ExperimentConfig) -> pathlib.Path:
    """Returns the folder that a config's dataset belongs to: root/suite/env/fingerprint."""
    name = config_lib.fingerprint(config_lib.data_identity(config))
    return pathlib.Path(root) / config.run.suite / config.run.env / name


def shapes(num_tasks: int, behaviour: BehaviourConfig, env: Env) -> Shapes:
    """Returns {field: shape} of a dataset that is collected."""
    lead = (num_tasks, behaviour.num_levels, behaviour.episodes_per_level, env.horizon)
    return shapes_of(lead, env)


def shapes_of(lead: tuple[int, int, int, int], env: Env) -> Shapes:
    """Returns {field: shape}. Args: lead, (tasks, levels, episodes, steps)."""
    vectors = {"obs": env.obs_dim, "next_obs": env.obs_dim, "action": env.action_dim}
    return {name: lead + ((vectors[name],) if name in vectors else ()) for name in FIELDS}


def num_bytes(wanted: Shapes) -> int:
    """Returns the bytes of float32 arrays of these shapes."""
    return 4 * sum(int(np.prod(shape)) for shape in wanted.values())


def fits(folder: pathlib.Path, wanted: Shapes) -> bool:
    """Whether every array of a dataset is there, not cut short and of the wanted shape."""
    open_one = lambda name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
    try:
        return all(open_one(name).shape == shape for name, shape in wanted.items())
    except (ValueError, OSError):
        return False


def open_arrays(folder: pathlib.Path, wanted: Shapes) -> dict[str, np.memmap]:
    """Opens writable arrays in `folder`, keeping those that have the wanted shape already."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, shape in wanted.items():
        path = folder / f"{name}.npy"
        if path.exists():
            try:
                np.lib.format.open_memmap(path, mode="r")  # "r+" would fill up a short file
                arrays[name] = np.lib.format.open_memmap(path, mode="r+")
            except (ValueError, OSError):  # cut short by a kill: made anew below
                arrays.pop(name, None)
        if name not in arrays or arrays[name].shape != shape:
            arrays[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            _reserve(path)
    return arrays


def _reserve(path):
    """Takes a new file's whole space: a disk that fills up later would kill a write to the map."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def stored_bytes(folder: Folder) -> int:
    """Returns the space on disk that a folder's arrays take already."""
    files = [pathlib.Path(folder) / f"{name}.npy" for name in FIELDS]
    return sum(path.stat().st_blocks * 512 for path in files if path.exists())


def level_hash(arrays: Fields, level: int) -> str:
    """Returns the sha256 of one behaviour level, all fields and tasks, in hex."""
    digest = hashlib.sha256()
    for array in arrays.values():
        for task in array:
            digest.update(np.ascontiguousarray(task[level]))
    return digest.hexdigest()


def write_level(arrays: Fields, level: int, fields: LevelFields) -> None:
    """Writes one behaviour level of every task and flushes it to disk."""
    for name, array in arrays.items():
        array[:, level] = fields[name]
        array.flush()


def file_hash(path: pathlib.Path) -> str:
    """Returns the sha256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(folder: pathlib.Path, meta: dict) -> None:
    """Finishes a dataset: adds schema and checksums to `meta` and writes it, last of all."""
    files = {f"{name}.npy": file_hash(folder / f"{name}.npy") for name in FIELDS}
    write_json(folder / "meta.json", json_files.sealed({"schema": SCHEMA, **meta, "sha256": files}))


def is_complete(folder: Folder) -> bool:
    """Whether a folder holds a finished dataset."""
    return (pathlib.Path(folder) / "meta.json").exists()


def read_meta(folder: Folder) -> dict:
    """Returns meta.json; raises UserError if it is absent or unreadable."""
    path = pathlib.Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text())
        older = older_schema(meta)
        if older is None and not (meta["schema"] == SCHEMA and isinstance(meta["sha256"], dict)):
            raise ValueError("another schema")
        meta.setdefault("checksum", "")
    except FileNotFoundError:
        raise errors.UserError(
            f"{folder} holds no dataset (meta.json is missing): pass another --data, or collect it "
            f"with `{errors.command('collect')}`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise errors.UserError(
            f"{path} is not a dataset description of schema {SCHEMA}: delete the folder to make it "
            f"anew"
        ) from None
    if older is not None:
        raise errors.UserError(
            f"{folder} holds a dataset of an older version (schema {older}, this version has "
            f"{SCHEMA}): use that version, or pass another --data to make the data anew there"
        )
    json_files.unsealed(meta, path, "restore it, or delete the folder to make the data anew")
    return meta


def older_schema(meta: dict) -> int | None:
    """Returns the schema of a dataset's description if it is one of an older version, else None."""
    schema = meta.get("schema") if isinstance(meta, dict) else None
    return schema if isinstance(schema, int) and 0 < schema < SCHEMA else None


def source_of(meta: dict) -> dict | None:
    """Returns where a dataset was imported from ({"format": ..., ...}), or None if collected."""
    return meta.get("identity", {}).get("source")


def misfit_of(meta: dict) -> str | None:
    """Returns what does not fit in a dataset that was imported all the same; None: all fits."""
    misfits = (meta.get("checked") or {}).get("misfits") or []
    if not misfits:
        return None
    return (
        f"{len({one['task'] for one in misfits})} task(s) of the data misfit the environment, "
        f"accepted at the import; task {misfits[0]['task']}: {misfits[0]['text']}"
    )


def imported(folder: Folder) -> dict | None:
    """Returns the meta.json of a folder that holds an imported dataset; None for any other."""
    if not is_complete(folder):
        return None
    meta = read_meta(folder)
    return meta if source_of(meta) else None


def check_identity(meta: dict, config: ExperimentConfig, folder: Folder) -> None:
    """Raises UserError unless the dataset was made by the configuration that is asked for.

    How imported data were made is unknown, so they fit every run on their environment and suite.
    Where they were exported from here, physics must agree as well.
    """
    asked, stored = {"tasks": None} | config_lib.data_identity(config), meta.get("identity", {})
    if all(stored.get(key) == asked[key] for key in ("env", "suite")):
        check_tasks(asked["tasks"], meta, folder)
    check_revealed(meta, config, folder)
    del asked["tasks"]
    if source_of(meta):
        known = stored.get("physics") != "imported"
        settings = asked["environment"]
        asked = {key: asked[key] for key in ("env", "suite", *(("physics",) if known else ()))}
        if known and stored.get("environment"):
            names = ("derive_constants", "contact_cost")
            asked["environment"] = {name: settings[name] for name in names}
    for key, value in asked.items():
        if isinstance(value, dict):
            other = stored.get(key) or {}
            pairs = [(f"{key}.{k}", other.get(k), v) for k, v in value.items() if v != other.get(k)]
        else:
            pairs = [(key, stored.get(key), value)] if value != stored.get(key) else []
        if pairs:
            name, had, want = pairs[0]
            raise errors.UserError(
                f"the dataset in {folder} was made with {name}={had}, this run asks for {want}: "
                f"change the setting, or pass --data without this folder"
            )


def check_tasks(digest: str | None, meta: dict, folder: Folder) -> None:
    """Raises UserError where a dataset is of other tasks than those that are asked for.

    Args: digest, `config.task_digest` of the table; None: the suite's own tasks.
    """
    stored = meta.get("identity", {}).get("tasks")
    if stored == digest:
        return
    if digest is None:
        raise errors.UserError(
            f"the dataset in {folder} is of tasks of its own ({meta.get('tasks_from')}), this run "
            f"asks for those of the suite: pass --data={folder}, without --tasks, to take those of "
            f"the data"
        )
    raise errors.UserError(
        f"the dataset in {folder} is of other tasks ({meta.get('tasks_from', 'its suite')}) than "
        f"--tasks: leave --tasks out to take those of the data, or pass another --data"
    )


def given_tasks(folder: Folder, env: str, suite: str) -> dict | None:
    """Returns the table of tasks that a dataset in `folder` carries; None where there is none.

    None too for the tasks of a suite, and for a dataset of another environment or suite.
    """
    if not is_complete(folder):
        return None
    meta = read_meta(folder)
    identity = meta.get("identity", {})
    ours = (identity.get("env"), identity.get("suite")) == (env, suite)
    return meta.get("task_table") if ours else None


def check_revealed(meta: dict, config: ExperimentConfig, folder: Folder) -> None:
    """Raises UserError where tasks are to be revealed and the data do not say what they are.

    Of imported data those do that were exported from here, or that came with their tasks.
    """
    source = source_of(meta)
    known = source and (source.get("exported") or meta.get("task_table"))
    if config.env.reveal_task and source and not known:
        raise errors.UserError(
            f"env.reveal_task needs the task parameters of the data, and {folder} was imported "
            f"from {source['format']} without them: leave it out, or pass --data with collected "
            f"data"
        )


def load(folder: Folder, config: ExperimentConfig | None = None) -> tuple[Fields, dict]:
    """Returns (fields, meta): memory-mapped arrays by name, checked against their checksums.

    Args: config, what the data must have been made with. Raises UserError for a missing, truncated
    or altered file, and for data made by another configuration.
    """
    folder = pathlib.Path(folder)
    meta = read_meta(folder)
    if config is not None:
        check_identity(meta, config, folder)
    fields = {}
    for name in FIELDS:
        path = folder / f"{name}.npy"
        mend = "restore the file, or delete the folder to make the data anew"
        damage = damage_of(path, meta)
        if damage:
            raise errors.UserError(f"dataset file {path} {damage}: {mend}")
        fields[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    field = not_finite(fields)
    if field:
        raise errors.UserError(
            f"dataset {folder} has NaN or infinite values in {field}: delete the folder to make "
            f"the data anew, or pass another --data"
        )
    return fields, meta


def damage_of(path: pathlib.Path, meta: dict) -> str | None:
    """Returns what is wrong with a file of a dataset as a few words, or None."""
    if not path.exists():
        return "is missing"
    if file_hash(path) != meta["sha256"].get(path.name):
        return "does not match its checksum (truncated or altered)"
    return None


def not_finite(fields: Fields) -> str | None:
    """Returns where the first NaN or infinite value is, as text; None if there is none.

    Rows that `mask` leaves out may hold anything: they are never read.
    """
    for name, array in fields.items():
        for task, values in enumerate(array):  # one task at a time: memory, not speed
            with np.errstate(invalid="ignore"):  # inf - inf
                total = np.sum(values, dtype=np.float64)
            if np.isfinite(total):  # then every term is: no array of booleans is needed
                continue
            bad = ~np.isfinite(values).reshape(*array.shape[1:4], -1).all(-1)
            bad &= fields["mask"][task] != 0
            if bad.any():
                level, episode, step = np.argwhere(bad)[0]
                return f"{name}.npy (task {task}, level {level}, episode {episode}, step {step})"
    return None


def check_shapes(fields: Fields, env: Env) -> None:
    """Raises UserError unless arrays have an Env's sizes."""
    num_tasks, _, _, horizon = fields["mask"].shape
    counts = {"tasks": num_tasks, "steps an episode": horizon}
    counts |= {f"numbers an {name}": fields[name].shape[-1] for name in ("obs", "action")}
    sizes = (len(env.parameters), env.horizon, env.obs_dim, env.action_dim)
    for (what, had), wanted in zip(counts.items(), sizes, strict=True):
        if had != wanted:
            raise errors.UserError(
                f"the dataset has {had} {what}, {env.name} of suite {env.suite} has {wanted} in "
                f"this run: pass another --data, --env or --suite, or make the data anew"
            )
