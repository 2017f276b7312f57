"""Reads .npy files and pickles of strangers: a pickle, and so an object array, can run any code.

The reader here knows what pickled NumPy arrays and scalars look like, and builds them from bytes
and lists. Nothing that the file names is imported or called, except an empty OrderedDict. NumPy's
`__setstate__`, which trusts its input, never sees the file's content. Whatever else a file asks for
is refused by name. Files of Python 2 hold bytes as text: latin1 turns one into the other.
"""

import collections
import contextlib
import io
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

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

    cells = None  # of an array of objects, once they are known

    def __setstate__(self, state):
        _, self.shape, self.kind, self.by_column, self.data = state

    def value(self):
        """Returns the array, with the arrays in its cells."""
        if not self.kind.is_object():
            order = "F" if self.by_column else "C"
            return np.frombuffer(_raw(self.data), self.kind.numpy()).reshape(
                self.shape, order=order
            )
        if self.cells is not None:  # one array may stand in many places
            return self.cells
        cells = np.empty(len(self.data), object)
        for i, cell in enumerate(self.data):
            cells[i] = cell.value() if isinstance(cell, _Array) else cell
        self.cells = cells.reshape(self.shape)
        return self.cells  # lists of cells go by row, whatever the flag says


def _raw(data):
    """Returns the bytes of an array or number; Python 2 wrote them as text."""
    return data.encode("latin1") if isinstance(data, str) else data


def _reconstruct(*_):
    """How pickles begin an array; its state follows."""
    return _Array()


def _frombuffer(data, kind, shape, order, axes=None):
    """How pickles of protocol 5 state a whole array."""
    if order not in ("C", "F") or axes is not None:
        raise ValueError("no order of rows or columns")
    array = _Array()
    array.shape, array.kind, array.by_column, array.data = shape, kind, order == "F", data
    return array


def _scalar(kind, data):
    """Returns a NumPy number."""
    return np.frombuffer(_raw(data), kind.numpy(), 1)[0]


def _encode(text, encoding):
    """Turns text into bytes, as pickles of protocol 2 ask for; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


_CORES = ("numpy.core", "numpy._core")  # NumPy 1 and 2
STANDINS = {
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _CORES},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and numbers. Overriding `find_class` is how pickle is restricted."""

    def __init__(self, file: io.BufferedIOBase, path: pathlib.Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Callable:
        """Returns what stands in for a class or function; raises UserError for any other."""
        if (module, name) not in STANDINS:
            raise refusal(self.path, module, name)
        return STANDINS[module, name]


def refusal(path: pathlib.Path, module: str, name: str) -> errors.UserError:
    """Returns the UserError for a pickle that asks for more than arrays and numbers."""
    return errors.UserError(
        f"{path} asks for {module}.{name}, which is neither an array nor a number, and was not "
        f"run: do not trust this file, or pass --allow_pickle if you wrote it"
    )


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str, also: tuple = ()) -> Iterator[None]:
    """Turns what a missing or damaged file raises into a UserError.

    Args: kind, what the file should be; also, exceptions beside DAMAGED.
    """
    try:
        with warnings.catch_warnings():  # headers of Python 2 are parsed twice, which numpy tells
            warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file", UserWarning)
            yield
    except errors.UserError:
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise errors.UserError(f"{path} is missing: restore it") from None
    except (*DAMAGED, *also) as error:
        raise errors.UserError(
            f"{path} is not a whole {kind} ({type(error).__name__}): restore it, or delete it "
            f"where others of its task are left"
        ) from None


def read_array(path: pathlib.Path, allow_pickle: bool = False) -> np.ndarray:
    """Returns the array of a .npy file; object arrays through the restricted reader.

    Args: allow_pickle, reads object arrays by plain pickle, which can run any code. Raises
    UserError for a file that is damaged, cut short, or asks for more than arrays and numbers.
    """
    with reading(path, ".npy file"), open(path, "rb") as file:
        if allow_pickle:
            return npy_format.read_array(
                file, allow_pickle=True, pickle_kwargs={"encoding": "latin1"}
            )
        if _holds_objects(file):
            return ArrayUnpickler(file, path).load().value()
        file.seek(0)
        return npy_format.read_array(file, allow_pickle=False)


def read_pickle(path: pathlib.Path, allow_pickle: bool = False) -> Any:
    """Returns what a pickle holds: dicts, lists, numbers and arrays, by the restricted reader.

    Args and errors as those of `read_array`.
    """
    with reading(path, "pickle"), open(path, "rb") as file:
        if allow_pickle:
            return pickle.Unpickler(file, encoding="latin1").load()
        return _plain(ArrayUnpickler(file, path).load(), {})


def _plain(value, seen):
    """Returns a value with arrays in the place of what stands in for them.

    Args: seen, {id: result}, since a small file may name one list a million times.
    """
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        seen[id(value)] = result = value.value()
    elif isinstance(value, dict):
        seen[id(value)] = result = {}
        result |= {key: _plain(each, seen) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        seen[id(value)] = result = []
        result += [_plain(each, seen) for each in value]
    else:
        result = value
    return result


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
