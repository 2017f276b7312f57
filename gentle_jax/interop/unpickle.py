"""Reads .npy files of strangers: object arrays are pickles, and a pickle can run any code.

The reader here knows what pickled NumPy arrays and scalars look like, and builds them from bytes
and lists. Nothing that the file names is imported or called. NumPy's `__setstate__`, which trusts
its input, never sees the file's content. Whatever else a file asks for is refused by name.
"""

import io
import pathlib
import pickle
import re
from collections.abc import Callable

import numpy as np
from numpy.lib import format as npy_format

from gentle_jax import errors

MAX_HEADER = 10_000  # characters; numpy's own bound for headers that it does not trust
NUMBERS = re.compile(r"b1|[iu][1248]|f(2|4|8|16)")  # booleans, whole numbers, floats
# what damaged files make pickle, or the classes below, raise
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
    OverflowError, MemoryError, RecursionError, SyntaxError, ImportError,
)  # fmt: skip


class _Kind:
    """Stands in for a numpy.dtype while a pickle is read."""

    def __init__(self, text, align=False, copy=False):
        del align, copy
        self.text, self.order = text, "="

    def __setstate__(self, state):
        self.order = state[1]

    def is_object(self):
        return self.text in ("O", "O8", "O4")

    def numpy(self):
        """Returns the dtype; raises ValueError unless it is one of numbers."""
        if not NUMBERS.fullmatch(self.text) or self.order not in ("<", ">", "=", "|"):
            raise ValueError("no dtype of numbers")
        return np.dtype(self.text).newbyteorder(self.order)


class _Array:
    """Stands in for a numpy.ndarray while a pickle is read."""

    def __setstate__(self, state):
        _, self.shape, self.kind, self.by_column, self.data = state

    def value(self):
        """Returns the array, with the arrays in its cells."""
        if not self.kind.is_object():
            order = "F" if self.by_column else "C"
            return np.frombuffer(self.data, self.kind.numpy()).reshape(self.shape, order=order)
        cells = np.empty(len(self.data), object)
        for i, cell in enumerate(self.data):
            cells[i] = cell.value() if isinstance(cell, _Array) else cell
        return cells.reshape(self.shape)  # lists of cells go by row, whatever the flag says


def _reconstruct(*_):
    """How pickles begin an array; its state follows."""
    return _Array()


def _scalar(kind, data):
    """Returns a NumPy number."""
    return np.frombuffer(data, kind.numpy(), 1)[0]


def _encode(text, encoding):
    """Turns text into bytes, as pickles of protocol 2 ask for; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
STANDINS = {
    **{(module, "_reconstruct"): _reconstruct for module in _MODULES},
    **{(module, "scalar"): _scalar for module in _MODULES},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and numbers. Overriding `find_class` is how pickle is restricted."""

    def __init__(self, file: io.BufferedIOBase, path: pathlib.Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Callable:
        """Returns what stands in for a class or function; raises UserError for any other."""
        if (module, name) not in STANDINS:
            raise errors.UserError(
                f"{self.path} asks for {module}.{name}, which is neither an array nor a number, "
                f"and was not run: do not trust this file, or pass --allow_pickle if you wrote it"
            )
        return STANDINS[module, name]


def read_array(path: pathlib.Path, allow_pickle: bool = False) -> np.ndarray:
    """Returns the array of a .npy file; object arrays through the restricted reader.

    Args: allow_pickle, reads object arrays by plain pickle, which can run any code. Raises
    UserError for a file that is damaged, cut short, or asks for more than arrays and numbers.
    """
    try:
        if allow_pickle:
            with open(path, "rb") as file:
                return npy_format.read_array(
                    file, allow_pickle=True, pickle_kwargs={"encoding": "latin1"}
                )
        with open(path, "rb") as file:
            if _holds_objects(file):
                return ArrayUnpickler(file, path).load().value()
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
