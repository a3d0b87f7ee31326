"""Every file the daemon reads, damaged in every way: one clear line, exit code 2 or a part left out, and no crash."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.system.line import LONG, figure, toml

from lineward.daemon.adopt import sweep
from lineward.daemon.check import check_recipe
from lineward.daemon.config import Config, ConfigError, load_config
from lineward.daemon.endpoint import SecretError, endpoint_of
from lineward.daemon.label_records import LabelError
from lineward.daemon.labels import LabelStore
from lineward.daemon.ledger import Ledger, LedgerError
from lineward.daemon.recipes import Recipes
from lineward.daemon.thumbnails import FILE, ThumbnailReader, Thumbnails
from lineward.images import ImageFileError, read_image
from lineward.models import store
from lineward.models.bundle import BundleError, load_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(3600 if LONG else 300)

CASES = 10_000 if LONG else 400
MOST_WORDS = 4000
"""Characters of one message; a configuration with thirty faults has thirty lines."""

WHOLE: dict[str, dict[str, Any]] = {
    "station": {"site": "plant", "line": "line1", "name": "cam1"},
    "camera": {"driver": "simulated", "width": 320, "height": 256, "rate_hz": 5.0, "faults": ["lamp:0.6@10..50"]},
    "inspection": {"model": "tiles.lward", "deadline_ms": 500, "providers": ["CPUExecutionProvider"], "threads": 2},
    "mqtt": {"host": "127.0.0.1", "port": 1883, "username": "u", "password_file": "secret.txt"},
    "storage": {"root": "storage", "max_gb": 20, "outbox_mb": 10},
    "review": {"keep_per_hour": 5, "keep_fails": True, "audit_share": 0.1, "port": 8430},
    "log": {"parts": True, "level": "INFO"},
}
VALUES = (
    *('""', "true", "-1", "0", "nan", "inf", "1e400", "9" * 30, "[]", "{}", "'\\u0000'", '"' + "x" * 300 + '"'),
    *("1979-05-27T07:32:00Z", "[1, [2, [3]]]", "'../../etc'", "'a b#c+/'", '"\\uD800"', "{ a = { b = 1 } }", "0x7f"),
)


def damage(data: bytes, draw: random.Random) -> bytes:
    """Damage bytes as disks, editors and people do."""
    if not data or draw.random() < 0.05:
        return draw.randbytes(draw.choice([0, 1, 16, 1000]))
    at, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 8, 64, 4096])
    before, after = data[:at], data[at:]
    odd = [b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\x00", b'"', b"'''", b"]", b"="]
    return draw.choice(
        [
            before,  # cut off
            before + draw.randbytes(length) + after[length:],
            before + after[length:],  # a hole
            before + after[:length] * 2 + after[length:],
            before + bytes(length) + after[length:],
            before + bytes([after[0] ^ (1 << draw.randrange(8))]) + after[1:],  # a bit
            before + draw.choice(odd) + after,
        ]
    )


def change_words(text: str, draw: random.Random) -> str:
    """Change a configuration as a person does: another value, a wrong key, a line twice or in the wrong place."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        key, equals, _value = lines[at].partition(" = ")
        how = draw.randrange(6)
        if how == 0 and equals:
            lines[at] = f"{key} = {draw.choice(VALUES)}"
        elif how == 1 and equals:
            lines[at] = f"{key[: draw.randrange(len(key) + 1)]}{draw.choice('xyz_.-')} = 1"
        elif how == 2:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif how == 3:
            lines.insert(at, lines.pop(draw.randrange(len(lines))))
        elif how == 4:
            lines[at] = draw.choice(["[camera]", "[[camera]]", "[x.y.z]", "=", "[", "camera = 1", '"" = ""', "a.b.c=1"])
        else:
            del lines[at]
            lines = lines or [""]
    return "\n".join(lines)


def assert_clear(error: BaseException, name: str) -> None:
    """One line for each fault, with the place, and nothing of Python in it."""
    text = str(error)
    assert text.strip(), type(error)
    assert len(text) <= MOST_WORDS, text
    assert name in text, text
    assert not re.search(r"Traceback|<class|object at 0x|For further information|pydantic", text), text


def read_config(path: Path) -> None:
    try:
        config = load_config(path)
        Config.model_validate(config.model_dump())
    except ConfigError as error:
        assert_clear(error, path.name)


def read_bundle(path: Path) -> None:
    try:
        load_bundle(path)
    except BundleError as error:
        assert_clear(error, path.name)


def read_model_of_recipe(path: Path) -> None:
    config = Config.model_validate({"camera": {"driver": "simulated"}, "inspection": {"model": path}})
    recipes = Recipes(config)
    found = check_recipe(recipes, recipes.names[0])
    assert found.fine or found.text
    assert "Traceback" not in found.text


def read_password(path: Path) -> None:
    config = Config.model_validate(
        {
            "camera": {"driver": "simulated"},
            "inspection": {"model": "x"},
            "mqtt": {"username": "u", "password_file": path},
        }
    )
    try:
        endpoint_of(config.mqtt, config.station)
    except SecretError as error:
        assert_clear(error, path.name)


def read_picture(path: Path) -> None:
    try:
        image = read_image(path)
    except ImageFileError as error:
        assert_clear(error, path.name)
    else:
        assert image.dtype == np.uint8
        assert image.ndim in {2, 3}


def read_ledger(path: Path) -> None:
    try:
        ledger = Ledger(path.parent)
    except LedgerError as error:
        assert_clear(error, path.parent.name)
        return
    try:
        ledger.unacknowledged(0, 10)
        with contextlib.suppress(OSError):
            list(sweep(path.parent, ledger))
    finally:
        ledger.close()


def read_thumbnails(path: Path) -> None:
    """Whatever was there, the page does not stumble, and what comes next is kept."""
    reader, thumbnails = ThumbnailReader(path.parent), Thumbnails(path.parent, max_bytes=10**6, most_px=32)
    for one in reader.newest(100):
        reader.jpeg(one.at_ns)
    try:
        for seq in range(10, 16):
            with contextlib.suppress(OSError):  # a damaged file is begun anew for the next one
                thumbnails.add(seq, seq, "bracket", np.full((32, 32), seq, np.uint8))
        assert thumbnails.add(40, 40, "bracket", np.zeros((32, 32), np.uint8))
    finally:
        thumbnails.close()
    assert reader.jpeg(40)


def read_labels(path: Path) -> None:
    try:
        labels = LabelStore(path.parent)
    except LabelError as error:
        assert_clear(error, path.name)
        return
    try:
        with contextlib.suppress(LabelError):
            labels.products()
    finally:
        labels.close()


def read_store(path: Path) -> None:
    root = path.parents[2]
    try:
        store.list_models(root)
        store.current(root, "bracket")
        store.resolve_model(root, path.parent.relative_to(root / "models"))
        store.audit(root)
    except BundleError as error:
        assert_clear(error, "models")


@pytest.fixture
def originals(bundle: Path, tmp_path: Path, images: Path) -> dict[str, tuple[bytes, Callable[[Path], None]]]:
    """Whole files by the place where they are read, with what reads them."""
    whole = tmp_path / "whole"
    ledger = Ledger(whole)
    ledger.close()
    labels = LabelStore(whole)
    labels.close()
    thumbnails = Thumbnails(whole, max_bytes=10**6, most_px=32)
    for seq in range(20):
        assert thumbnails.add(seq, seq, "bracket", np.full((32, 32), seq, np.uint8))
    thumbnails.close()
    picture = next(images.iterdir())
    store.add(whole, bundle)
    product = next(path for path in (whole / "models").iterdir() if path.is_dir())
    store.promote(whole, product.name, next(product.glob("*.lward")).stem, force=True)
    pointer = next(path for path in product.iterdir() if path.is_file() and path.suffix not in {".lward", ".sha256"})
    found: dict[str, tuple[bytes, Callable[[Path], None]]] = {
        "line.toml": (toml(WHOLE).encode(), read_config),
        "secret.txt": (b"hidden-from-others\n", read_password),
        "part.png": (picture.read_bytes(), read_picture),
        "storage/ledger.sqlite3": ((whole / "ledger.sqlite3").read_bytes(), read_ledger),
        "storage/ledger.seq": ((whole / "ledger.seq").read_bytes(), read_ledger),
        "storage/labels.sqlite3": ((whole / "labels.sqlite3").read_bytes(), read_labels),
        f"storage/{FILE}": ((whole / FILE).read_bytes(), read_thumbnails),
        f"storage/models/{product.name}/{pointer.name}": (pointer.read_bytes(), read_store),
        "storage/images/bracket/2026-01-01/7-ab.json": (json.dumps({"seq": 7, "image": "ab"}).encode(), read_side_car),
        "tiles.lward": (bundle.read_bytes(), read_bundle),
    }
    shutil.rmtree(whole)
    return found


def read_side_car(path: Path) -> None:
    root = path.parents[3]
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20) + b"IEND" + bytes(4))
    ledger = Ledger(root)
    try:
        list(sweep(root, ledger))
    finally:
        ledger.close()


SHARES = {"line.toml": 0.5, "tiles.lward": 0.05, "part.png": 0.1}
"""Of the cases; the other files share the rest."""


def test_damaged_files_are_told_in_one_clear_message(
    originals: dict[str, tuple[bytes, Callable[[Path], None]]], tmp_path: Path
) -> None:
    """Rule: whatever a file holds, nothing but the program's own errors comes out, and they name the file."""
    draw = random.Random(20260105)
    names = list(originals)
    rest = (1 - sum(SHARES.values())) / (len(names) - len(SHARES))
    weights = [SHARES.get(name, rest) for name in names]
    counts: dict[str, int] = {}
    faults: dict[str, str] = {}
    for case in range(CASES):
        (name,) = draw.choices(names, weights)
        data, read = originals[name]
        folder = tmp_path / "case"
        path = folder / name
        path.parent.mkdir(parents=True)
        changed = data
        if name == "line.toml" and draw.random() < 0.7:
            changed = change_words(data.decode(), draw).encode("utf-8", "replace")
        else:
            for _ in range(draw.randint(1, 3)):
                changed = damage(changed, draw)
        path.write_bytes(changed)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                read(path)
        except Exception:  # noqa: BLE001 - the case is told, whatever it was
            kept = tmp_path / f"found-{case}-{path.name}"
            kept.write_bytes(changed)
            found = traceback.format_exc(limit=-4)
            faults.setdefault(f"{name} {found.splitlines()[-1][:60]}", f"case {case}, kept as {kept}:\n{found}")
        counts[name] = counts.get(name, 0) + 1
        shutil.rmtree(folder)
    figure(f"{CASES} damaged files, each told or read: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    assert not faults, "\n".join(faults.values())
    assert len(counts) == len(names)
