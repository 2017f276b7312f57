"""Datasets below a folder: which there are, and how large they are."""

import os
import pathlib

import numpy as np

from gentle_jax import errors, storage


def below(root):
    """Returns the folders of datasets below `root`, itself included, finished or not.

    Links are followed, as they are where a run looks for its data.
    """
    folders, seen = [], set()
    for place, inside, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # by another link, or a link to a folder that it lies in
            inside.clear()
            continue
        seen.add(real)
        inside.sort()
        if {"meta.json", "mask.npy"} & set(files):
            folders.append(pathlib.Path(place))
    if not folders:
        raise errors.UserError(
            f"{root} holds no dataset: pass another --data, or make one with "
            f"`{errors.command('collect')}` or `{errors.command('data')} import`"
        )
    return sorted(folders)


def unreadable(folder):
    """Returns why a description cannot be read: "older", of a version before, or "damaged"."""
    try:
        older = storage.older_schema(storage.read_json(folder / "meta.json")) is not None
    except errors.UserError:
        older = False
    return "older" if older else "damaged"


def sizes_of(folder):
    """Returns tasks x levels x episodes of a dataset as text, from one file's header."""
    try:
        shape = np.load(folder / "mask.npy", mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return "damaged"
    return " x ".join(map(str, shape[:3]))
