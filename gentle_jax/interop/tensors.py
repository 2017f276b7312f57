"""Reads a tensor that `torch.save` wrote, without torch.

Since PyTorch 1.6 such a file is a zip: `<name>/data.pkl` says what the tensor looks like,
`<name>/data/<key>` holds its numbers as raw bytes, `<name>/byteorder` their order (little where it
is absent). The pickle asks for a function that rebuilds a tensor and for its storage, by a
persistent id. Both are stood in for here, and nothing else that a file asks for is looked up.
"""

import collections
import io
import math
import pathlib
import pickle
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from gentle_jax import errors
from gentle_jax.interop import unpickle

STORAGES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2"}
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError)


class _Storage(NamedTuple):
    """Stands in for a storage while a pickle is read; a file cannot give it another state."""

    kind: str
    key: str
    count: int


class _Tensor(NamedTuple):
    """Stands in for a tensor while a pickle is read."""

    storage: _Storage
    offset: int
    size: tuple
    stride: tuple


def _rebuild(storage, offset, size, stride, *_):
    """How pickles state a tensor; gradients and hooks follow."""
    return _Tensor(storage, offset, size, stride)


class TensorUnpickler(pickle.Unpickler):
    """Unpickles one tensor of floats; its numbers are not in the pickle."""

    def __init__(self, file: io.BufferedIOBase, path: pathlib.Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        """Returns what stands in for a class or function; raises UserError for any other."""
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):  # of hooks, empty
            return collections.OrderedDict
        raise errors.UserError(
            f"{self.path} asks for {module}.{name}, which is not a tensor of floats, and was not "
            f"run: save one float32 tensor a file"
        )

    def persistent_load(self, saved: tuple) -> _Storage:
        """Returns what stands in for a storage; the place where it lay does not matter."""
        _, kind, key, _, count = saved
        return _Storage(kind, key, count)


def _numbers(archive, name, storage):
    """Returns the numbers of a storage [count]."""
    kind, key, count = storage
    order = f"{name}/byteorder"
    written = archive.read(order) if order in archive.namelist() else b"little"
    dtype = np.dtype({b"little": "<", b"big": ">"}[written] + kind)
    member = archive.getinfo(f"{name}/data/{int(key)}")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != count * dtype.itemsize:
        raise ValueError("another size")  # torch does not compress: small files stay small
    return np.frombuffer(archive.read(member), dtype)


def _placed(numbers, tensor):
    """Returns the array of a tensor; raises ValueError for rows outside of its numbers."""
    _, offset, size, stride = tensor
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("shape")
    if math.prod(size) > len(numbers):  # also what would repeat a few numbers without end
        raise ValueError("more than there is")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(numbers):
        raise ValueError("beyond the end")
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, steps).copy()


def read(path: pathlib.Path) -> np.ndarray:
    """Returns the tensor of a file of `torch.save` as an array.

    Raises UserError for a file that is damaged, cut short, older than PyTorch 1.6, or asks for
    anything but a tensor of floats.
    """
    kind = "file of torch.save"
    with unpickle.reading(path, kind, DAMAGED):
        file = io.BytesIO(path.read_bytes())  # a damaged zip may name places outside of its file
        if file.read(2) != b"PK":
            raise errors.UserError(
                f"{path} is not a zip, as torch.save writes since PyTorch 1.6: save it again with "
                f"a newer one, or restore it"
            )
        with zipfile.ZipFile(file) as archive:
            places = [n.split("/") for n in archive.namelist() if n.endswith("/data.pkl")]
            ((name, _),) = places
            with archive.open(f"{name}/data.pkl") as described:
                tensor = TensorUnpickler(described, path).load()
            if not isinstance(tensor, _Tensor):
                raise errors.UserError(
                    f"{path} holds a {type(tensor).__name__}: expected one tensor a file"
                )
            return _placed(_numbers(archive, name, tensor.storage), tensor)
