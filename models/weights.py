"""Read a PyTorch checkpoint without PyTorch, and without running anything that is in it."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_MAX_NUMBERS = 1_000_000_000


class WeightsError(ValueError):
    """A weights file cannot be used; the message names the file, what is wrong and what to do."""


class _Tensor(NamedTuple):
    storage: tuple[Any, ...]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> _Tensor:
    return _Tensor(tuple(storage), int(offset), tuple(shape), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    """Knows the five names a state dict consists of; any other name ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_state_dict(path: Path, *, sha256: str) -> dict[str, NDArray[np.generic]]:
    """Read the tensors of a checkpoint in PyTorch's format from before 1.6 (five pickles, then raw storages).

    Parameters
    ----------
    path
        The ``.pth`` file.
    sha256
        Expected SHA-256 of the file, hexadecimal: weights are part of what was tested.

    Returns
    -------
    dict
        Tensor name to C-contiguous array of float32 or int64, in the file's order.

    Raises
    ------
    WeightsError
        Missing, other than expected, cut off, or asking for anything but tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}; install its package again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{path}: SHA-256 is {found[:16]}..., expected {sha256[:16]}...; install its package again, pinned by hash"
        )
    try:
        return _parse(io.BytesIO(data))
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path}: not a checkpoint of the old PyTorch format: {error}") from error


def _parse(stream: io.BytesIO) -> dict[str, NDArray[np.generic]]:
    magic, protocol, _system = (_TensorUnpickler(stream).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("wrong magic number")
    tensors = _TensorUnpickler(stream).load()
    keys = _TensorUnpickler(stream).load()
    kinds = {tensor.storage[2]: tensor.storage[1] for tensor in tensors.values()}
    storages: dict[str, NDArray[np.generic]] = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if not 0 <= count <= _MAX_NUMBERS:
            raise ValueError(f"a storage of {count} numbers")
        kind = kinds[key]
        raw = stream.read(count * kind.itemsize)
        if len(raw) != count * kind.itemsize:
            raise ValueError("the file is cut off")
        storages[key] = np.frombuffer(raw, kind)
    return {name: _view(tensor, storages) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storages: dict[str, NDArray[np.generic]]) -> NDArray[np.generic]:
    flat = storages[tensor.storage[2]]
    reach = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or reach >= flat.size or min((*tensor.strides, 0)) < 0:
        raise ValueError("a tensor reaches beyond its storage")
    strides = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides))
