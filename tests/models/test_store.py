"""The model store: what was added is what judges, whatever is killed, renamed or done at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import onnx
import pytest

from lineward.models import store, store_files
from lineward.models.bundle import Bundle, BundleError, load_bundle, save_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineward.models.quick import TrainReport

    Make = Callable[..., Path]


@pytest.fixture(scope="module")
def graph(trained: TrainReport) -> bytes:
    bundle = load_bundle(trained.model)
    return bundle.data[: bundle.manifest.graph_bytes]


@pytest.fixture
def make(trained: TrainReport, graph: bytes, tmp_path: Path) -> Make:
    """Make a real bundle of any version."""

    def bundle(version: str, product: str = "plates", **fields: object) -> Path:
        path = tmp_path / "made" / f"{product.replace('/', '_')}-{version.replace('/', '_')}.lward"
        update = {"version": version, "product": product, **fields}
        save_bundle(path, graph, trained.manifest.model_copy(update=update))
        return path

    return bundle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def files(root: Path) -> dict[str, bytes]:
    """Everything in the store but lock and audit."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in {".lock", store_files.AUDIT}}


def test_added_promoted_rolled_back(root: Path, make: Make) -> None:
    """The current model is what was promoted last; a rollback brings back the one before, once for each promotion."""
    for version in ("1", "2", "3"):
        store.add(root, make(version))
        store.promote(root, "plates", version)
    folder = root / "models" / "plates"
    assert store.current(root, "plates") == store.resolve_model(root, type(root)("plates")) == folder / "3.lward"
    assert store.history(root, "plates") == ("3", "2", "1")
    assert store.rollback(root, "plates").version == "2"
    assert store.rollback(root, "plates").version == "1"
    with pytest.raises(store.StoreError, match="nothing to roll back to: nothing judged before 1; another version"):
        store.rollback(root, "plates")
    assert [entry.version for entry in store.list_models(root) if entry.current] == ["1"]
    assert [(line["what"], line["version"]) for line in store.audit(root)][-3:] == [
        ("promote", "3"),
        ("rollback", "2"),
        ("rollback", "1"),
    ]


def test_digest_beside_the_file_is_one_that_sha256sum_reads(root: Path, make: Make) -> None:
    """Anybody can check a store without Lineward."""
    entry = store.add(root, make("1"))
    done = subprocess.run(["sha256sum", "--check", "1.sha256"], cwd=entry.path.parent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_audit_names_who_when_and_what(root: Path, make: Make) -> None:
    """Each decision has one line with the person, the time, the version, the one before it and the file's digest."""
    first, second = store.add(root, make("1")), store.add(root, make("2"))
    store.promote(root, "plates", "1", who="ada")
    store.promote(root, "plates", "2", who="bob")
    store.promote(root, "plates", "2", who="eve")  # changes nothing, so nothing was decided
    lines = store.audit(root)
    assert [(line["who"], line["version"], line.get("before")) for line in lines[2:]] == [
        ("ada", "1", None),
        ("bob", "2", "1"),
    ]
    assert [line["sha256"] for line in lines] == [first.sha256, second.sha256] * 2
    assert all(line["when"].endswith("Z") for line in lines)
    assert lines[0]["who"] == store.user()


def test_adding_again_changes_nothing_and_another_file_is_refused(root: Path, make: Make) -> None:
    """A version never changes once it is in the store."""
    store.add(root, make("1"))
    before = files(root)
    store.add(root, make("1"))
    assert files(root) == before
    with pytest.raises(store.StoreError, match="a version never changes"):
        store.add(root, make("1", parent="0" * 64))
    assert files(root) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def fails_when_run(graph: bytes) -> bytes:
    """The same model, but for a step in front that ONNX Runtime finds out about when it runs it."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.input[:] = ["front.checked" if name == "image" else name for name in node.input]
    front = [
        onnx.helper.make_node("Cast", ["image"], ["front.numbers"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("ReduceMax", ["front.numbers"], ["front.brightest"], keepdims=1, axes=[0, 1, 2, 3]),
        onnx.helper.make_node("Reshape", ["front.brightest", "front.one"], ["front.sides"]),
        onnx.helper.make_node("Reshape", ["image", "front.sides"], ["front.flat"]),
        onnx.helper.make_node("Shape", ["image"], ["front.shape"]),
        onnx.helper.make_node("Reshape", ["front.flat", "front.shape"], ["front.checked"]),
    ]
    for node in reversed(front):
        model.graph.node.insert(0, node)
    model.graph.initializer.append(onnx.helper.make_tensor("front.one", onnx.TensorProto.INT64, [1], [1]))
    return model.SerializeToString()


def test_a_model_that_cannot_be_run_is_never_promoted(root: Path, make: Make, graph: bytes, tmp_path: Path) -> None:
    """Rule: what this machine cannot run does not become the model that a restart would look for; one line says so."""
    entry = store.add(root, make("1"))
    store.promote(root, "plates", "1")
    broken = tmp_path / "broken.lward"
    save_bundle(broken, fails_when_run(graph), load_bundle(make("2")).manifest)
    store.add(root, broken)
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot run the model: .*; train or import it again$"):
        store.promote(root, "plates", "2")
    assert store.resolve_model(root, type(root)("plates")) == entry.path
    assert [line["what"] for line in store.audit(root)] == ["add", "promote", "add"]


TROUBLES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "another product's": lambda path: path.write_bytes((path.parent.parent / "tiles" / "1.lward").read_bytes()),
    "digest of another": lambda path: path.with_suffix(".sha256").write_text(f"{'0' * 64}  1.lward\n"),
    "digest cut off": lambda path: path.with_suffix(".sha256").write_text("deadbeef"),
    "digest is binary": lambda path: path.with_suffix(".sha256").write_bytes(b"\xff\xfe\x00"),
    "no digest": lambda path: path.with_suffix(".sha256").unlink(),
    "both": lambda path: (flip(path), path.with_suffix(".sha256").write_text("deadbeef")),
    "no audit": lambda path: (flip(path), (path.parent.parent / store_files.AUDIT).unlink()),
    "renamed": lambda path: [
        path.with_name(f"2{suffix}").replace(path.with_suffix(suffix)) for suffix in (".lward", ".sha256")
    ],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_adding_the_original_again_heals(root: Path, make: Make, trouble: str) -> None:
    """Whatever became of the file or its digest, the original brings both back, and the audit tells who did that."""
    original = make("1")
    entry = store.add(root, original)
    store.promote(root, "plates", "1")
    store.add(root, make("1", "tiles"))
    before = files(root)
    store.add(root, make("2"))
    TROUBLES[trouble](entry.path)
    assert store.show(root, "plates", "1").trouble
    assert store.add(root, original, who="ada").trouble == ""
    assert before.items() <= files(root).items()
    assert store.resolve_model(root, type(root)("plates")) == entry.path
    last = store.audit(root)[-1]
    assert (last["what"], last["who"], last["version"], last["sha256"]) == ("restore", "ada", "1", entry.sha256)


def test_nothing_but_the_original_heals(root: Path, make: Make) -> None:
    """What was put in the place of a version by hand does not become it; out of the store, another can be added."""
    entry = store.add(root, make("1"))
    other = make("1", parent="0" * 64)
    entry.path.write_bytes(other.read_bytes())
    with pytest.raises(store.StoreError, match=r"not known to be its original; .* move this one and 1\.sha256 out"):
        store.add(root, other)
    entry.path.with_suffix(".sha256").unlink()
    with pytest.raises(store.StoreError, match="not known to be its original"):
        store.add(root, other)
    assert [line["what"] for line in store.audit(root)] == ["add"]
    entry.path.unlink()
    assert store.add(root, other).trouble == ""
    assert [line["what"] for line in store.audit(root)] == ["add", "add"]


def test_names_in_any_script(root: Path, make: Make) -> None:
    """A product and a version of letters beyond ASCII are promoted and rolled back like others."""
    for version in ("v1-größer", "漢" * 64):
        assert store.add(root, make(version, "größe")).trouble == ""
        assert store.promote(root, "größe", version).current
    assert store.rollback(root, "größe").version == "v1-größer"


DAMAGED = b"\xff\xfe../../x"


def test_a_damaged_pointer_keeps_no_other_product_from_anything(root: Path, make: Make) -> None:
    """One damaged `current` is that product's trouble: the others are listed, added, promoted and rolled back."""
    for product, version in (("plates", "1"), ("tiles", "1"), ("tiles", "2")):
        store.add(root, make(version, product))
        store.promote(root, product, version)
    pointer = root / "models" / "plates" / store_files.CURRENT
    pointer.write_bytes(DAMAGED)
    assert store.rollback(root, "tiles").version == "1"
    assert store.promote(root, "tiles", "2").current
    assert store.add(root, make("1", "bars")).trouble == ""
    assert store.add(root, make("2")).trouble == ""
    listed = store.list_models(root)
    assert [(entry.product, entry.version) for entry in listed if not entry.trouble] == [
        ("bars", "1"),
        ("plates", "1"),
        ("plates", "2"),
        ("tiles", "1"),
        ("tiles", "2"),
    ]
    (damaged,) = [entry for entry in listed if entry.trouble]
    assert (damaged.product, damaged.version, damaged.path, damaged.current) == ("plates", "", pointer, True)
    assert store.show(root, "plates") == damaged
    with pytest.raises(store.StoreError, match=r"no version '3' of 'plates'; there are 1, 2$"):
        store.promote(root, "plates", "3")
    assert pointer.read_bytes() == DAMAGED


def test_a_promotion_mends_a_damaged_pointer(root: Path, make: Make) -> None:
    """Nothing judges and nothing is rolled back until a version is promoted, as the message says; the audit has it."""
    for version in ("1", "2"):
        store.add(root, make(version))
        store.promote(root, "plates", version)
    (root / "models" / "plates" / store_files.CURRENT).write_bytes(DAMAGED)
    remedy = "damaged, not a list of versions.*`lineward models promote plates VERSION`"
    with pytest.raises(store.StoreError, match=remedy):
        store.resolve_model(root, type(root)("plates"))
    with pytest.raises(store.StoreError, match=remedy):
        store.rollback(root, "plates")
    assert store.history(root, "plates") == ()
    assert store.promote(root, "plates", "2").current
    assert store.history(root, "plates") == ("2",)
    assert [entry.trouble for entry in store.list_models(root)] == ["", ""]
    last = store.audit(root)[-1]
    assert (last["what"], last["version"], last["mended"]) == ("promote", "2", "current was damaged")


@pytest.mark.parametrize("trouble", ["flipped", "other", "no digest", "gone", "renamed"])
def test_a_file_that_is_not_the_one_added_never_judges(
    root: Path, make: Make, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading verifies the digest that the file had when it was added, even when the file is a sound bundle."""
    opened: list[Path] = []

    def load(path: Path) -> Bundle:
        opened.append(path)
        return load_bundle(path)

    monkeypatch.setattr("lineward.models.store_check.load_bundle", load)
    entry = store.add(root, make("1"))
    store.promote(root, "plates", "1")
    assert store.resolve_model(root, type(root)("plates")) == entry.path
    if trouble == "flipped":
        flip(entry.path)
    elif trouble == "other":
        entry.path.write_bytes(make("1", parent="0" * 64).read_bytes())
    elif trouble == "no digest":
        entry.path.with_suffix(".sha256").unlink()
    elif trouble == "renamed":
        store.add(root, make("2"))
        for suffix in (".lward", ".sha256"):
            (entry.path.parent / f"2{suffix}").replace(entry.path.with_suffix(suffix))
    else:
        entry.path.unlink()
    for read in ([entry.path], []):  # a station asks every second, and reads it once
        opened.clear()
        with pytest.raises(BundleError):
            store.resolve_model(root, type(root)("plates"))
        assert opened == (read if trouble in {"flipped", "other", "renamed"} else [])
    (listed,) = [found for found in store.list_models(root) if found.version == "1"]
    assert listed.current
    assert listed.trouble
    assert "\n" not in listed.trouble
    with pytest.raises(BundleError):
        store.promote(root, "plates", "1")


def test_an_unknown_format_is_not_added(root: Path, make: Make) -> None:
    """A bundle of a format that this version does not know never enters the store."""
    with pytest.raises(BundleError, match="unknown bundle format version 9"):
        store.add(root, make("1", format_version=9))
    assert files(root) == {}


@pytest.mark.parametrize(
    ("product", "version"), [("../plates", "1"), ("a/b", "1"), ("plates", "../1"), ("", "1"), ("p.q", "1"), (".x", "1")]
)
def test_names_stay_inside_the_store(root: Path, make: Make, product: str, version: str) -> None:
    """A product or version that would be a path is refused by name."""
    with pytest.raises(store.StoreError, match="cannot be a name in the store"):
        store.add(root, make(version, product))
    assert files(root) == {}


def test_not_promotable_is_promoted_by_force_only(root: Path, make: Make) -> None:
    """A bundle that its own training found worse does not judge unless somebody insists, and the audit says so."""
    store.add(root, make("1", promotable=False, not_promotable="it misses more cracks than its parent"))
    with pytest.raises(store.StoreError, match=r"misses more cracks.*--force"):
        store.promote(root, "plates", "1")
    assert store.current(root, "plates") is None
    store.promote(root, "plates", "1", force=True)
    assert "misses more cracks" in store.audit(root)[-1]["forced"]


@pytest.mark.parametrize("there", [False, True], ids=["added", "put there by hand"])
def test_a_model_that_differs_from_its_training_never_judges(root: Path, make: Make, *, there: bool) -> None:
    """Rule: a model whose export gives other verdicts is not taken in, and not put in force by force either."""
    other = {"parity": load_bundle(make("1")).manifest.parity.model_copy(update={"verdicts_equal": False})}
    with pytest.raises(store.StoreError, match=r"other verdicts than its training.*again"):
        store.add(root, make("2", **other))
    if not there:
        assert files(root) == {}
        return
    entry = store.add(root, make("2"))
    data = make("2", **other).read_bytes()
    entry.path.write_bytes(data)
    (beside,) = entry.path.parent.glob("*.sha256")
    beside.write_text(f"{hashlib.sha256(data).hexdigest()}  {entry.path.name}\n")
    with pytest.raises(store.StoreError, match="other verdicts than its training"):
        store.promote(root, "plates", "2", force=True)
    (listed,) = store.list_models(root, "plates")
    assert "other verdicts" in listed.trouble


def test_what_is_missing_is_said_with_what_is_there(root: Path, make: Make) -> None:
    """Wrong names get a line that says which there are."""
    store.add(root, make("1"))
    with pytest.raises(store.StoreError, match=r"no version '2' of 'plates'; there are 1"):
        store.promote(root, "plates", "2")
    with pytest.raises(store.StoreError, match=r"no version of 'plates' is promoted; there are 1"):
        store.show(root, "plates")
    with pytest.raises(store.StoreError, match="add one"):
        store.show(root, "tiles", "1")
    with pytest.raises(BundleError, match="no current model for 'tiles'"):
        store.resolve_model(root, type(root)("tiles"))


def test_two_processes_take_turns(root: Path, make: Make) -> None:
    """Promotions from several processes at once are all in the history, in some order, and none is torn."""
    paths = [make(str(number)) for number in range(4)]
    script = (
        "import sys; from pathlib import Path; from lineward.models import store\n"
        "root, file = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "entry = store.add(root, file); store.promote(root, entry.product, entry.version)\n"
    )
    with ThreadPoolExecutor(4) as pool:
        jobs = [[sys.executable, "-c", script, str(root), str(path)] for path in paths]
        for done in pool.map(lambda job: subprocess.run(job, capture_output=True, text=True, check=False), jobs):
            assert done.returncode == 0, done.stderr
    assert sorted(store.history(root, "plates")) == ["0", "1", "2", "3"]
    assert [line["what"] for line in store.audit(root)].count("promote") == 4
    assert not [entry.trouble for entry in store.list_models(root) if entry.trouble]


def test_a_lock_of_a_killed_process_is_free(root: Path, make: Make) -> None:
    """Who dies holding the lock keeps nobody out; who lives and holds it is waited for, then named as the reason."""
    store.add(root, make("1"))
    script = (
        "import sys, time; from pathlib import Path; from lineward.models import store_files\n"
        "with store_files.locked(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        store.promote(root, "plates", "1")
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None
    assert store.history(root, "plates") == ("1",)


KILLED = """
import os, sys
from pathlib import Path
from lineward.models import store
root, file, step, action = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
count = 0
def watch(event, args):
    # Every file that is opened, renamed or removed below the store is a point at which a machine can lose its power.
    global count
    if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(args[0]).startswith(str(root)):
        count += 1
        if count > step:
            os.kill(os.getpid(), 9)
sys.addaudithook(watch)
if action == "add":
    store.add(root, file)
elif action == "promote":
    store.promote(root, "plates", "2")
else:
    store.rollback(root, "plates")
"""


@pytest.mark.parametrize("action", ["add", "promote", "rollback"])
def test_killed_at_any_point_the_store_is_as_before_or_done(root: Path, make: Make, action: str) -> None:
    """Killed before any of its file operations, a command leaves the old state or the new one, and sound files."""
    second = make("2")
    store.add(root, make("0"))
    store.promote(root, "plates", "0")
    store.add(root, make("1"))
    store.promote(root, "plates", "1")
    if action == "promote":
        store.add(root, second)
    old, new = {"add": ("1", "1"), "promote": ("1", "2"), "rollback": ("1", "0")}[action]
    killed = 0
    for step in range(0, 200, 3):
        command = [sys.executable, "-c", KILLED, str(root), str(second), str(step), action]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        now = store.current(root, "plates")
        assert now is not None
        assert now.stem in {old, new}
        entries = store.list_models(root)
        assert not [entry.trouble for entry in entries if entry.trouble]
        assert {entry.version for entry in entries} - {"2"} == {"0", "1"}
        store.resolve_model(root, type(root)("plates"))
        killed += done.returncode == -signal.SIGKILL
        if done.returncode == 0 or now.stem != old:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        pytest.fail("never came to an end")
    assert killed >= 2
    assert now.stem == new
    store.show(root, "plates", "0")
    # What a killed process had announced and not done is put right by the next one.
    last = store.audit(root)[-1]
    assert (last["what"], last["version"]) == (action, "2" if action != "rollback" else "0")
    assert not list(root.rglob("*.storing"))


def test_a_pointer_changed_by_hand_is_on_record(root: Path, make: Make) -> None:
    """The audit says which model judged even when somebody edited `current` instead of promoting."""
    for version in ("1", "2"):
        store.add(root, make(version))
        store.promote(root, "plates", version)
    (root / "models" / "plates" / store_files.CURRENT).write_text("1\n")
    store.promote(root, "plates", "2")
    found = store.audit(root)[-2]
    assert (found["what"], found["who"], found["version"], found["decided"]) == ("found", "unknown", "1", "2")


def test_a_cut_off_audit_line_spoils_no_other(root: Path, make: Make) -> None:
    """After a crash of the machine in the middle of a line, the next decision starts a line of its own."""
    store.add(root, make("1"))
    with (root / "models" / store_files.AUDIT).open("a") as stream:
        stream.write('{"when": "20')
    store.promote(root, "plates", "1")
    assert [line["what"] for line in store.audit(root)] == ["add", "promote"]
    assert json.loads((root / "models" / store_files.AUDIT).read_text().splitlines()[-1])["what"] == "promote"


def test_a_folder_that_cannot_be_written_to(root: Path, make: Make) -> None:
    """No permission: one line with the folder and the remedy."""
    if os.geteuid() == 0:
        root.parent.mkdir(exist_ok=True)
        root.write_text("a file in the place of the folder")
    else:
        root.mkdir()
        root.chmod(0o500)
    with pytest.raises(store.StoreError, match="run this as the user who owns it"):
        store.add(root, make("1"))


def test_a_product_found_without_a_version_is_on_record(root: Path, make: Make) -> None:
    """The audit says in words that the pointer was gone."""
    store.add(root, make("1"))
    store.promote(root, "plates", "1")
    (root / "models" / "plates" / store_files.CURRENT).unlink()
    store.promote(root, "plates", "1")
    found = store.audit(root)[-2]
    assert (found["what"], found["version"], found["decided"]) == ("found", "no version", "1")
