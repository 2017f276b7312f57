"""Shards, the run folders that `experiments.gather` merges: what is in one, whether it is whole."""

import hashlib
import io
import json
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from gentle_jax import config as config_lib
from gentle_jax import errors, json_files

from . import outputs

RESTORE = "restore it, or delete the summary.json beside it and give the run's command again"


class Shard(NamedTuple):
    """One run folder and what its config.json and summary.json say."""

    folder: object  # a path
    identity: dict  # every setting, as in config.json
    first: int  # its first seed
    count: int  # how many seeds
    summary: dict | None  # None: unfinished

    @property
    def end(self):
        """The seed after the last one."""
        return self.first + self.count


def read_shard(folder):
    """Returns the Shard in a folder, or None without a config.json; UserError for a damaged one."""
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        identity = json_files.unsealed(json.loads(path.read_text()), path, RESTORE)
        run = identity["run"]
        first, count = int(run["seed_offset"]), int(run["num_seeds"])
        list(identity["sweep"])
    except errors.UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.UserError(
            f"{path} is not the config of a run: delete the folder, or pass another one"
        ) from None
    done = (folder / "summary.json").exists()
    return Shard(folder, identity, first, count, outputs.read_summary(folder) if done else None)


def settings_of(identity):
    """Returns (config, grid points) of a run's identity."""
    tree = {key: value for key, value in identity.items() if key not in ("sweep", "data")}
    return config_lib.from_dict(tree), tuple(identity["sweep"])


def load(shard, name):
    """Returns the arrays of one .npz file of a shard; raises UserError if it cannot be read."""
    path = shard.folder / name
    try:
        with np.load(io.BytesIO(read(shard, name)), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise damaged(path) from None


def read(shard, name):
    """Returns the bytes of a file of a shard; raises ValueError if they are not what was written.

    A shard of a version that kept no hashes is taken as it is.
    """
    content = (shard.folder / name).read_bytes()
    known = shard.summary.get("sha256", {}).get(name)
    if known not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError("altered")
    return content


def damaged(path):
    """Returns the UserError for a file of a finished shard that is missing or cannot be read."""
    return errors.UserError(
        f"{path} cannot be read, or was altered: delete the summary.json beside it, give the run's "
        f"command again"
    )
