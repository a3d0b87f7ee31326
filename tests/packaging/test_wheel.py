"""What is built is what is tested: the wheel's contents, and that editable and wheel installs behave alike."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon", "drivers", "models")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source archive and, made from it, the wheel, as a release would be."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "lineward"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, (os.fsdecode(file) for file in files)):
        if not os.path.lexists(ROOT / name):
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to((ROOT / name).readlink()) if (ROOT / name).is_symlink() else target.write_bytes(
            (ROOT / name).read_bytes()
        )
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def modules(folder: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}


def test_the_wheel_holds_every_module_once_and_nothing_else(built: Path) -> None:
    """The links in src/lineward must not lose a file, and no top-level `daemon` may reach site-packages."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"lineward/{name}" for folder in PACKAGES for name in modules(folder)}
    expected |= {"lineward/__init__.py", "lineward/extras.py", "lineward/images.py", "lineward/py.typed"}
    assert {name for name in names if name.endswith((".py", ".typed"))} == expected
    assert {name.split("/")[0] for name in names} == {"lineward"}


def test_the_source_archive_can_be_built_again(built: Path) -> None:
    """It was: the wheel is made from it. It holds licence and notice."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= names
    assert any(name.endswith("daemon/loop.py") for name in names)


def test_wheel_and_editable_install_behave_alike(built: Path, tmp_path: Path) -> None:
    """Version, command line help and every module's import are the same from either."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # noqa: S202 - a zip file that this test has built
    ours = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    script = (
        "import importlib, json, sys\n"
        "import lineward\n"
        "from typer.testing import CliRunner\n"
        "from lineward.daemon.cli import app\n"
        "modules = json.loads(sys.argv[1])\n"
        "for name in modules: importlib.import_module(name)\n"
        "print(json.dumps([lineward.__version__, CliRunner().invoke(app, ['--help']).output, lineward.__file__]))\n"
    )
    names = sorted(
        "lineward." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for folder in PACKAGES
        for name in modules(folder)
        if name != "drivers/worker.py" and (name != "models/tail.py" or importlib.util.find_spec("torch"))
    )
    environment = {**os.environ, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
    editable = run(sys.executable, script, names, environment)
    # The wheel's own folder goes first; the third-party packages come from the environment under test.
    installed = run(sys.executable, script, names, environment | {"PYTHONPATH": str(site)})
    assert installed[:2] == editable[:2]
    assert installed[2].startswith(str(site))
    assert not editable[2].startswith(str(ours))


def run(python: str, script: str, names: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [python, "-c", script, json.dumps(names)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: list[str] = json.loads(done.stdout)
    return answer


def test_locks_name_no_index_and_pin_every_file_by_hash() -> None:
    """An install must not depend on where a package was once downloaded."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "index-url" not in text
        for entry in text.replace("\\\n", " ").splitlines():
            if entry and not entry.lstrip().startswith("#"):
                assert "==" in entry
                assert "--hash=sha256:" in entry
