"""Reads .npy files of strangers: object arrays are pickles, and a pickle can run any code.

The reader here builds NumPy arrays, NumPy scalars and Python's own numbers, texts and containers,
nothing else: a file that asks for any other function or class is refused before that is called.
"""

import pathlib
import pickle

import numpy as np
from numpy.lib import format as npy_format

from gentle_jax import errors

_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
ADMITTED = {
    **{(module, "_reconstruct"): np.zeros(0).__reduce__()[0] for module in _ARRAYS},
    **{(module, "scalar"): np.float64(0.0).__reduce__()[0] for module in _ARRAYS},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
MAX_HEADER = 10_000  # characters; numpy's own bound for headers that it does not trust
# what damaged files make pickle, or the functions above, raise
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
    OverflowError, MemoryError, RecursionError, SyntaxError, ImportError,
)  # fmt: skip


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and numbers. Overriding `find_class` is how pickle is restricted."""

    def __init__(self, file, path):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module, name):
        """Returns an admitted function or class; raises UserError for any other."""
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes an array's bytes
            return _encode
        if (module, name) not in ADMITTED:
            raise errors.UserError(
                f"{self.path} asks for {module}.{name}, which is neither an array nor a number, "
                f"and was not run: do not trust this file, or pass --allow_pickle if you wrote it"
            )
        return ADMITTED[module, name]


def _encode(text, encoding):
    """Turns text into bytes, as pickles of protocol 2 ask for; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


def read_array(path, allow_pickle=False):
    """Returns the array of a .npy file; object arrays through the restricted reader.

    Args: allow_pickle, reads object arrays by plain pickle, which can run any code. Raises
    UserError for a file that is damaged, cut short, or asks for more than arrays and numbers.
    """
    path = pathlib.Path(path)
    try:
        if allow_pickle:
            return np.load(path, allow_pickle=True, encoding="latin1")
        with open(path, "rb") as file:
            if _holds_objects(file):
                return _read_objects(file, path)
        return np.load(path, allow_pickle=False)
    except errors.UserError:
        raise
    except FileNotFoundError:
        raise errors.UserError(f"{path} is missing: restore it") from None
    except DAMAGED as error:
        raise errors.UserError(
            f"{path} is not a whole .npy file ({type(error).__name__}): restore it, or delete it "
            f"to import without it"
        ) from None


def _holds_objects(file):
    """Whether an open .npy file holds an object array; leaves the file behind its header."""
    version = npy_format.read_magic(file)
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in readers:  # version 3 names fields of records: numbers have none
        raise ValueError("another version")
    return readers[version](file, max_header_size=MAX_HEADER)[2].hasobject


def _read_objects(file, path):
    array = ArrayUnpickler(file, path).load()
    if not isinstance(array, np.ndarray):
        raise ValueError("no array")
    return array
