"""JSON files of ours: whole or absent, without NaN, and some with a checksum of their own."""

import json
import math
import os
import pathlib
from typing import Any

from gentle_jax import errors
from gentle_jax.config import fingerprint


def write(path: pathlib.Path, tree: Any) -> None:
    """Writes JSON so that a reader sees the old file or all of the new one.

    What is not finite becomes null: JSON has no NaN. Several processes may write one file.
    """
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        json.dump(without_nan(tree), file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def without_nan(tree: Any) -> Any:
    """Returns a JSON tree with None in the place of numbers that are not finite."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def with_nan(tree: Any) -> Any:
    """Returns a tree of numbers with NaN in the place of None: what `without_nan` was given."""
    if isinstance(tree, dict):
        return {key: with_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_nan(value) for value in tree]
    return math.nan if tree is None else tree


def sealed(tree: dict) -> dict:
    """Returns a JSON dict with a checksum of its own behind it, for `write`."""
    content = json.loads(json.dumps(without_nan(tree)))
    return content | {"checksum": fingerprint(content)}


def unsealed(tree: dict, path: os.PathLike, mend: str) -> dict:
    """Returns what `sealed` was given; a file of a version without checksums is taken as it is.

    Args: path, where it was read; mend, what to do about it. Raises UserError if it was altered.
    """
    content = {key: value for key, value in tree.items() if key != "checksum"}
    if len(content) < len(tree) and tree["checksum"] != fingerprint(content):
        raise errors.UserError(f"{path} does not match its own checksum (altered): {mend}")
    return content


def read(path: os.PathLike) -> Any:  # of an object store too
    """Returns the content of a JSON file that this package wrote, or {} if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {}
