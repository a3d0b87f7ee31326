"""One file with everything a judgement depends on: an ONNX model whose metadata carries the manifest.

The file is the model as serialised, followed by two metadata entries: ``lineward``, the manifest with the SHA-256 of
all bytes before them, and ``lineward_sha256``, the SHA-256 of the manifest. Protocol buffers allow such an appendix, so
any ONNX tool opens the file, and every byte of it is covered by one of the two digests.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lineward.models.records import FORMAT_VERSION, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bundle", "BundleError", "Manifest", "load_bundle", "load_manifest", "save_bundle"]

_MANIFEST_KEY = b"lineward"
_DIGEST_KEY = b"lineward_sha256"
_GRAPH_FIELD, _METADATA_FIELD = 7, 14  # ModelProto.graph and metadata_props
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})

MAX_FIELDS = 1000
"""Most top-level fields of a file; a bundle has about ten, and one for each function of an imported model."""


class BundleError(ValueError):
    """A bundle cannot be used; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: manifest, the file's bytes (a complete ONNX model) and their SHA-256."""

    manifest: Manifest
    data: bytes
    sha256: str


def save_bundle(path: Path, graph: bytes, manifest: Manifest) -> str:
    """Write a bundle whole or not at all, and return the SHA-256 of the file.

    Parameters
    ----------
    path
        Where to; an existing file is replaced in one step.
    graph
        A serialised ModelProto without metadata.
    manifest
        ``graph_bytes`` and ``graph_sha256`` are filled in here.

    Raises
    ------
    BundleError
        The folder cannot be written to.
    """
    sealed = manifest.model_copy(
        update={"graph_bytes": len(graph), "graph_sha256": hashlib.sha256(graph).hexdigest()},
    )
    data = graph + _appendix(sealed.model_dump_json().encode())
    write_output(path, data)
    return hashlib.sha256(data).hexdigest()


def check_output(path: Path) -> None:
    """See that a file can be written there, before the work is done that it is to hold.

    Raises
    ------
    BundleError
        It is a folder, or the folder it would lie in cannot be written to.
    """
    if path.is_dir():
        raise BundleError(f"{path}: is a folder; give the name of a file in it")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {place}: {error.strerror or error}") from error


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a person asked for, whole or not at all; its folder is made when it is not there.

    Raises
    ------
    BundleError
        It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)  # mkstemp gives 0600; the daemon runs as another user than training
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from error


def load_manifest(path: Path) -> Manifest:
    """Read and verify a bundle and return its manifest; raises `BundleError`."""
    return load_bundle(path).manifest


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and verify every byte of it; raises `BundleError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file; train a model with `lineward train`, or correct the path") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise BundleError(f"{path}: the file is empty (0 bytes); copy it again from where it was trained")
    text = _verified_manifest(path, data)
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        if place == "format_version":
            remedy = f"this Lineward reads version {FORMAT_VERSION}; update it, or train the model again"
            raise BundleError(f"{path}: unknown bundle format version {first['input']!r}; {remedy}") from error
        raise BundleError(f"{path}: {place} in the manifest: {first['msg']}; train the model again") from error
    return Bundle(manifest, data, hashlib.sha256(data).hexdigest())


def _verified_manifest(path: Path, data: bytes) -> bytes:
    damaged = f"{path}: the file is damaged (a digest does not match); copy it again from where it was trained"
    numbers: set[int] = set()
    start = len(data)
    try:
        for number, begin in _fields(data):
            numbers.add(number)
            if number == _METADATA_FIELD:
                start = min(start, begin)
    except ValueError as error:
        if _MANIFEST_KEY in data:
            raise BundleError(damaged) from error
        raise BundleError(f"{path}: not an ONNX file, so not a bundle; make one with `lineward train`") from error
    if not numbers <= _MODEL_FIELDS or _GRAPH_FIELD not in numbers:
        raise BundleError(f"{path}: not an ONNX model, so not a bundle; make one with `lineward train`")
    found = data.rfind(_entry_head(_MANIFEST_KEY), start)
    if found < 0:
        hint = damaged if _MANIFEST_KEY in data[start:] else None
        raise BundleError(
            hint or f"{path}: an ONNX model without a Lineward manifest; make a bundle with `lineward train`"
        )
    text = _entry_value(data, found + len(_entry_head(_MANIFEST_KEY)))
    if text is None or data[start:] != _appendix(text):
        raise BundleError(damaged)
    if not _names_digest(text, hashlib.sha256(data[:start]).hexdigest(), start):
        raise BundleError(damaged)
    return text


def _names_digest(text: bytes, digest: str, size: int) -> bool:
    return text.endswith(f'"graph_bytes":{size},"graph_sha256":"{digest}"}}'.encode())


def _appendix(text: bytes) -> bytes:
    digest = hashlib.sha256(text).hexdigest().encode()
    return b"".join(
        _tagged(_METADATA_FIELD, _tagged(1, key) + _tagged(2, value))
        for key, value in ((_MANIFEST_KEY, text), (_DIGEST_KEY, digest))
    )


def _entry_head(key: bytes) -> bytes:
    return _tagged(1, key) + bytes([2 << 3 | 2])


def _entry_value(data: bytes, position: int) -> bytes | None:
    try:
        size, position = _varint(data, position)
    except ValueError:
        return None
    return data[position : position + size] if position + size <= len(data) else None


def _tagged(number: int, payload: bytes) -> bytes:
    """Encode one length-delimited protobuf field."""
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + payload


def _fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield number and begin of each top-level field; `ValueError` when it is no protobuf message of a model's size.

    Thirty lines instead of `import onnx`, which would cost the service 30 MB and a second copy of the model.
    """
    position = count = 0
    while position < len(data):
        begin, count = position, count + 1
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                _, position = _varint(data, position)
            case 2:
                size, position = _varint(data, position)
                position += size
            case _:
                raise ValueError("a field that no ONNX model has")
        if position > len(data) or tag >> 3 == 0:
            raise ValueError("cut off")
        if count > MAX_FIELDS:
            raise ValueError("more fields than any model has")
        yield tag >> 3, begin


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("not a number")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
