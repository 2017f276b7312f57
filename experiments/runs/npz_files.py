"""Files of arrays: what reading a damaged one may raise, and writing one whole."""

import os
import zipfile
import zlib

import numpy as np

DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def write(path, arrays):
    """Writes {name: array} as one compressed file; readers find the old one or the new one."""
    whole = path.with_name(f".{path.name}.{os.getpid()}.npz")  # several processes may write at once
    np.savez_compressed(whole, **arrays)
    whole.replace(path)
