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

from gentle_jax import config as config_lib
from gentle_jax import errors

SCHEMA = 2
FIELDS = ("obs", "action", "reward", "context_reward", "next_obs", "terminal", "mask")


def folder_of(root, config):
    """Returns the folder that a config's dataset belongs to: root/suite/env/fingerprint."""
    name = config_lib.fingerprint(config_lib.data_identity(config))
    return pathlib.Path(root) / config.run.suite / config.run.env / name


def shapes(num_tasks, behaviour, env):
    """Returns {field: shape} of a dataset."""
    lead = (num_tasks, behaviour.num_levels, behaviour.episodes_per_level, env.horizon)
    return shapes_of(lead, env)


def shapes_of(lead, env):
    """Returns {field: shape} for lead, (tasks, levels, episodes, steps)."""
    vectors = {"obs": env.obs_dim, "next_obs": env.obs_dim, "action": env.action_dim}
    return {name: lead + ((vectors[name],) if name in vectors else ()) for name in FIELDS}


def num_bytes(wanted):
    """Returns the bytes of float32 arrays of {field: shape}."""
    return 4 * sum(int(np.prod(shape)) for shape in wanted.values())


def fits(folder, wanted):
    """Whether every array of a dataset is there, whole and of the wanted shape."""
    open_one = lambda name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
    try:
        return all(open_one(name).shape == shape for name, shape in wanted.items())
    except (ValueError, OSError):
        return False


def open_arrays(folder, wanted):
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


def stored_bytes(folder):
    """Returns the space that a folder's arrays take already."""
    found = [pathlib.Path(folder) / f"{name}.npy" for name in FIELDS]
    return sum(path.stat().st_blocks * 512 for path in found if path.exists())


def write_level(arrays, level, fields):
    """Writes one behaviour level of every task and flushes it to disk."""
    for name, array in arrays.items():
        array[:, level] = fields[name]
        array.flush()


def file_hash(path):
    """Returns the sha256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, tree):
    """Writes JSON so that a reader sees the old file or the whole new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with open(temporary, "w") as file:
        json.dump(tree, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path):
    """Returns the content of a JSON file that this package wrote, or {} if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {}


def commit(folder, meta):
    """Finishes a dataset: adds schema and checksums to `meta` and writes it, last of all."""
    files = {f"{name}.npy": file_hash(folder / f"{name}.npy") for name in FIELDS}
    whole = {"schema": SCHEMA, **meta, "sha256": files}
    write_json(folder / "meta.json", whole | {"checksum": config_lib.fingerprint(whole)})


def is_complete(folder):
    """Whether a folder holds a finished dataset."""
    return (pathlib.Path(folder) / "meta.json").exists()


def read_meta(folder):
    """Returns meta.json; raises UserError if it is absent or unreadable."""
    path = pathlib.Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text())
        if meta["schema"] != SCHEMA or not isinstance(meta["sha256"], dict):
            raise ValueError("another schema")
        rest = {key: value for key, value in meta.items() if key != "checksum"}
        altered = meta["checksum"] != config_lib.fingerprint(rest)
    except FileNotFoundError:
        raise errors.UserError(
            f"{folder} holds no dataset (meta.json is missing): pass another --data, or collect it "
            f"with `python -m experiments.collect`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise errors.UserError(
            f"{path} is not a dataset description of schema {SCHEMA}: delete the folder to make it "
            f"anew"
        ) from None
    if altered:
        raise errors.UserError(
            f"{path} does not match its own checksum (altered): restore it, or delete the folder "
            f"to make the data anew"
        )
    return meta


def source_of(meta):
    """Returns where a dataset was imported from ({"format": ..., ...}), or None if collected."""
    return meta.get("identity", {}).get("source")


def imported(folder):
    """Returns the meta.json of an imported dataset's own folder; None for anything else."""
    if not is_complete(folder):
        return None
    meta = read_meta(folder)
    return meta if source_of(meta) else None


def check_identity(meta, config, folder):
    """Raises UserError unless the dataset was made by the configuration that is asked for.

    Imported data fit every run on their environment and suite: nobody here knows how they were
    made, unless they were exported from here; then physics must agree as well.
    """
    wanted, found = config_lib.data_identity(config), meta.get("identity", {})
    if source_of(meta):
        known = found.get("physics") != "imported"
        wanted = {key: wanted[key] for key in ("env", "suite", *(("physics",) if known else ()))}
        if known and found.get("environment"):
            made = config_lib.data_identity(config)["environment"]
            wanted["environment"] = {k: made[k] for k in ("derive_constants", "contact_cost")}
    for key in wanted:
        if isinstance(wanted[key], dict):
            mine, other = wanted[key], found.get(key) or {}
            pairs = [(f"{key}.{k}", other.get(k), mine[k]) for k in mine if mine[k] != other.get(k)]
        else:
            pairs = [(key, found.get(key), wanted[key])] if wanted[key] != found.get(key) else []
        if pairs:
            name, had, want = pairs[0]
            raise errors.UserError(
                f"the dataset in {folder} was made with {name}={had}, this run asks for {want}: "
                f"change the setting, or pass --data without this folder"
            )


def load(folder, config=None):
    """Returns (fields, meta): memory-mapped arrays by name, checked against their checksums.

    Args: config, an ExperimentConfig that the data must have been made with. Raises UserError for
    a missing, truncated or altered file, and for data made by another configuration.
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
    place = not_finite(fields)
    if place:
        raise errors.UserError(
            f"dataset {folder} has NaN or infinite values in {place}: delete the folder to make "
            f"the data anew, or pass another --data"
        )
    return fields, meta


def damage_of(path, meta):
    """Returns what is wrong with a file of a dataset as a few words, or None."""
    if not path.exists():
        return "is missing"
    if file_hash(path) != meta["sha256"].get(path.name):
        return "does not match its checksum (truncated or altered)"
    return None


def not_finite(fields):
    """Returns where the first value that is not finite is, as text; None if all are.

    Args: fields, {name: array [task, level, episode, step, ...]} with `mask`. Rows that the mask
    leaves out are never read, so what they hold is no matter.
    """
    for name, array in fields.items():
        for task, values in enumerate(array):  # one task at a time: memory, not speed
            with np.errstate(invalid="ignore"):  # inf - inf
                total = np.sum(values, dtype=np.float64)
            if np.isfinite(total):  # then every term is, and no array of booleans was made
                continue
            bad = ~np.isfinite(values).reshape(*array.shape[1:4], -1).all(-1)
            bad &= fields["mask"][task] != 0
            if bad.any():
                level, episode, step = np.argwhere(bad)[0]
                return f"{name}.npy (task {task}, level {level}, episode {episode}, step {step})"
    return None


def check_shapes(fields, env):
    """Raises UserError unless arrays {name: array} have an Env's sizes."""
    num_tasks, _, _, horizon = fields["mask"].shape
    found = {"tasks": num_tasks, "steps an episode": horizon}
    found |= {f"numbers an {name}": fields[name].shape[-1] for name in ("obs", "action")}
    sizes = (len(env.parameters), env.horizon, env.obs_dim, env.action_dim)
    for (what, had), wanted in zip(found.items(), sizes, strict=True):
        if had != wanted:
            raise errors.UserError(
                f"the dataset has {had} {what}, {env.name} of suite {env.suite} has {wanted} in "
                f"this run: pass another --data, --env or --suite, or make the data anew"
            )
