from __future__ import annotations

import hashlib
import json
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from lineward.models.bundle import BundleError, load_bundle, load_manifest, save_bundle
from lineward.models.graph import Graph

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.quick import TrainReport


def small_graph() -> bytes:
    graph = Graph()
    name = graph.input("image", "uint8", ("N", 32, 32, 1))
    flat = graph.op("Reshape", graph.op("Cast", name, to=1), graph.constant([-1, 1024], "shape"))
    graph.output("defect_probability", graph.op("ReduceMean", flat, axes=[1], keepdims=0), ["N"])
    return bytes(graph.model("small", "0").SerializeToString())


@pytest.fixture
def small(trained: TrainReport, tmp_path: Path) -> Path:
    path = tmp_path / "small.lward"
    save_bundle(path, small_graph(), trained.manifest)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_bundle_is_a_plain_onnx_file(small: Path, trained: TrainReport) -> None:
    """Any ONNX tool opens it and finds the manifest in its metadata."""
    model = onnx.load(small)
    onnx.checker.check_model(model, full_check=True)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(entries["lineward"])["product"] == "plates"
    loaded = load_bundle(small)
    assert loaded.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    assert loaded.manifest.model_copy(update={"graph_bytes": 0, "graph_sha256": ""}) == trained.manifest.model_copy(
        update={"graph_bytes": 0, "graph_sha256": ""}
    )


def test_every_flipped_byte_is_noticed(small: Path) -> None:
    """Whatever single byte changes, in the graph, the manifest or between, the bundle is refused in one line."""
    data = small.read_bytes()
    random = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= int(random.integers(1, 256))
        small.write_bytes(bytes(changed))
        with pytest.raises(BundleError) as caught:
            load_manifest(small)
        assert "\n" not in str(caught.value), position


def test_flips_in_a_real_bundle(trained: TrainReport, tmp_path: Path) -> None:
    """The same for a trained bundle, at places spread over it."""
    data = trained.model.read_bytes()
    path = tmp_path / "flipped.lward"
    for position in np.random.default_rng(1).integers(0, len(data), 12).tolist():
        changed = bytearray(data)
        changed[position] ^= 0x01
        path.write_bytes(bytes(changed))
        assert "damaged" in refused(path)


@pytest.mark.parametrize("cut", [1, 70, 500, 5000])
def test_a_cut_off_bundle_is_refused(small: Path, cut: int) -> None:
    """A copy that ended early is no bundle."""
    small.write_bytes(small.read_bytes()[:-cut])
    assert small.name in refused(small)


def test_something_appended_is_noticed(small: Path) -> None:
    """Not even a further metadata entry may be added."""
    extra = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key="a", value="b")]).SerializeToString()
    small.write_bytes(small.read_bytes() + extra)
    assert "damaged" in refused(small)


def test_missing(tmp_path: Path) -> None:
    """A wrong path says how to get a bundle."""
    assert "no such file" in refused(tmp_path / "none.lward")


def test_a_folder(tmp_path: Path) -> None:
    """A folder is not a file."""
    assert "cannot be read" in refused(tmp_path)


def test_empty(tmp_path: Path) -> None:
    """0 bytes is a copy that failed."""
    path = tmp_path / "empty.lward"
    path.touch()
    assert "0 bytes" in refused(path)


@pytest.mark.parametrize("content", ["[station]\nname = 'x'\n", "hello", "\n" * 50, '{"a": 1}', "BBBBBBB"])
def test_text(tmp_path: Path, content: str) -> None:
    """A text file is recognised as something else."""
    path = tmp_path / "text.lward"
    path.write_text(content)
    assert "not an ONNX" in refused(path)


def test_a_hostile_file_costs_no_more_than_its_size(tmp_path: Path) -> None:
    """Half a million fields of two bytes are refused within the memory that the file itself takes."""
    path = tmp_path / "hostile.lward"
    path.write_bytes(b"\x08\x01" * 500_000 + b"\x3a\x00")
    size = path.stat().st_size
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "not an ONNX file" in message
    assert peak < 2 * size


def test_functions_of_an_imported_model_are_no_hostile_fields(trained: TrainReport, tmp_path: Path) -> None:
    """Exports of torch bring hundreds of functions, each a field of its own."""
    model = onnx.ModelProto.FromString(small_graph())
    for number in range(500):
        model.functions.add(name=f"function_{number}", domain="pkg.torch")
    path = tmp_path / "functions.lward"
    save_bundle(path, model.SerializeToString(), trained.manifest)
    assert load_manifest(path).product == "plates"


def test_onnx_without_manifest(tmp_path: Path) -> None:
    """Anybody's ONNX model is pointed to the import command."""
    path = tmp_path / "foreign.lward"
    path.write_bytes(small_graph())
    assert "lineward train" in refused(path)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ('"format_version":1', '"format_version":99', "format version 99"),
        ('"product":"plates"', '"product":5', "product"),
        ('"tier":"quick"', '"tier":"quick","mood":1', "mood"),
    ],
)
def test_unknown_manifests_are_refused(small: Path, field: str, text: str, words: str) -> None:
    """A newer format, a wrong type and an unknown field are each named, though every digest is right."""
    graph = small_graph()
    manifest = load_manifest(small).model_dump_json().replace(field, text, 1)
    entries = {"lineward": manifest, "lineward_sha256": hashlib.sha256(manifest.encode()).hexdigest()}
    appendix = onnx.ModelProto(
        metadata_props=[onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
    )
    small.write_bytes(graph + appendix.SerializeToString())
    assert words in refused(small)


def test_nothing_half_written(trained: TrainReport, tmp_path: Path) -> None:
    """When the file cannot be written there is one line, and no partial file is left."""
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        save_bundle(tmp_path / "file" / "x.lward", small_graph(), trained.manifest)
    (tmp_path / "taken.lward").mkdir()
    with pytest.raises(BundleError, match="cannot be written"):
        save_bundle(tmp_path / "taken.lward", small_graph(), trained.manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.lward"]
