"""The documentation is executed: every example runs as printed, every link leads somewhere, the reference is fresh.

A block of `sh`, `toml` or `json` may carry directives, each an HTML comment on a line of its own before it:
`docs-test: skip REASON`, `docs-test: file NAME` (a configuration, written there), `docs-test: fragment` (a part of a
configuration), `docs-test: background` (stopped with SIGINT at the end of the page), `docs-test: needs PROGRAM`.
Blocks of the language `text` show what was printed and are not run. Ports 1883 and 1884 become free ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker import free_port
from lineward.daemon.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial" / "first-line.md"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
EXECUTED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", TUTORIAL, *HOW_TO]
MINIMAL = {"camera": {"driver": "simulated"}, "inspection": {"model": "any.lward"}}
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
pytestmark = pytest.mark.timeout(600)  # the tutorial trains a model, which a busy machine takes minutes for
START_S = 5.0  # until a program in the background has done something worth seeing


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its language, its text, and what the comments before it ask for."""

    place: str
    language: str
    text: str
    asked: dict[str, str]


def blocks(page: Path) -> list[Block]:
    found, asked, lines = [], {}, iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        directive = re.fullmatch(r"<!-- docs-test: (\w+) ?(.*?) -->", line)
        fence = re.fullmatch(r"```(\w*)", line)
        if directive:
            asked[directive[1]] = directive[2]
        elif fence:
            text = []
            for _, inner in lines:
                if inner == "```":
                    break
                text.append(inner)
            found.append(Block(f"{name_of(page)}:{number}", fence[1], "\n".join(text) + "\n", asked))
            asked = {}
        elif line.strip():
            assert not asked, f"{name_of(page)}:{number}: a directive without a block"
    return found


@dataclass
class Reader:
    """Does what a page says, block by block, in one folder."""

    folder: Path
    ports: dict[str, str] = field(default_factory=lambda: {"1883": str(free_port()), "1884": str(free_port())})
    background: list[tuple[subprocess.Popen[bytes], Path, Block, float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def follow(self, page: Path) -> str:
        """Execute a page; return what programs in the background wrote."""
        try:
            for block in blocks(page):
                self.do(block)
        finally:
            heard = self.stop()
        return heard

    def do(self, block: Block) -> None:
        named = {Path(word).name for word in block.text.split()}
        needed = set(block.asked.get("needs", "").split()) | {"mosquitto_sub", "mosquitto"} & named
        missing = [program for program in sorted(needed) if shutil.which(program, path=PATH) is None]
        if "skip" in block.asked:
            return
        if missing:
            self.left_out.append(f"{block.place}: {', '.join(missing)} is not installed")
        elif block.language == "sh":
            self.run(block)
        elif block.language == "toml" and "file" in block.asked:
            (self.folder / block.asked["file"]).write_text(self.with_free_ports(block.text), encoding="utf-8")

    def with_free_ports(self, text: str) -> str:
        for documented, free in self.ports.items():
            text = re.sub(rf"\b{documented}\b", free, text)
        return text

    def run(self, block: Block) -> None:
        command = ["bash", "-euo", "pipefail", "-c", self.with_free_ports(block.text)]
        environment = {
            "PATH": PATH,
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
            "PYTHONWARNINGS": "error",
        }
        if "background" in block.asked:
            log = self.folder / f"background-{len(self.background)}.txt"
            with log.open("wb") as out:
                process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=out)
            self.background.append((process, log, block, time.monotonic()))
            time.sleep(0.5)  # a broker listens, a subscriber has subscribed
            return
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        print(f"--- {block.place}\n{done.stdout}{done.stderr}")  # noqa: T201 - shown by pytest when a test fails
        assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stdout}{done.stderr}"

    def stop(self) -> str:
        heard = ""
        for process, log, block, started in reversed(self.background):
            if "lineward" in block.text.split():
                time.sleep(max(0.0, started + START_S - time.monotonic()))
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait(10)
            text = log.read_text(encoding="utf-8")
            print(f"--- {block.place} (background, {code})\n{text}")  # noqa: T201
            if "lineward" in block.text.split():
                assert code == 0, f"{block.place} ended with {code}:\n{text}"
            heard += text
        self.background.clear()
        return heard


def seqs(heard: str) -> list[int]:
    """Numbers of the answers in the order in which `mosquitto_sub` printed them."""
    return [int(number) for number in re.findall(r'\{"schema_version":1,"seq":(\d+),', heard)]


def say_what_was_left_out(reader: Reader) -> None:
    if reader.left_out:
        pytest.skip("executed but for " + "; ".join(reader.left_out))


@dataclass(frozen=True)
class Workshop:
    """The reader's folder after the tutorial: images, a model, a configuration."""

    reader: Reader
    heard: str


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    reader = Reader(tmp_path_factory.mktemp("first-line"))
    return Workshop(reader, reader.follow(TUTORIAL))


def test_the_tutorial_works_as_printed(workshop):
    """Rule: a reader who types the tutorial gets a model, and one answer per file, in order, in mosquitto_sub."""
    say_what_was_left_out(workshop.reader)
    assert seqs(workshop.heard) == list(range(1, 51))
    assert len(re.findall(r"/result/plc \{", workshop.heard)) == 50


@pytest.mark.parametrize("page", HOW_TO, ids=name_of)
def test_how_to_works_as_printed(page, workshop):
    """Rule: the commands of a how-to work in the folder that the tutorial left behind."""
    reader = Reader(workshop.reader.folder, workshop.reader.ports)
    heard = reader.follow(page)
    say_what_was_left_out(reader)
    if page.stem == "read-results":
        away = seqs(heard)[:100]
        assert away == list(range(1, 101)), "answers given while the broker was away come first and in order"


@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_every_example_is_run_or_says_why_not(page):
    """Rule: no example of a guide is mere decoration; one that no test runs names its reason."""
    for block in blocks(page):
        assert block.language in {"sh", "toml", "json", "text"}, f"{block.place}: language {block.language!r}"
        if "skip" in block.asked:
            assert len(block.asked["skip"].split()) >= 3, f"{block.place}: say why it is not run"
        elif block.language == "toml":
            assert {"file", "fragment"} & set(block.asked), f"{block.place}: a file or a fragment?"
        elif block.language == "sh":
            assert page == TUTORIAL or page in HOW_TO, f"{block.place}: no test runs this page"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_configuration_is_accepted(page, tmp_path):
    """Rule: a configuration in the documentation is one that Lineward takes; JSON is JSON."""
    for block in blocks(page):
        if "skip" in block.asked:
            continue
        if block.language == "toml":
            path = tmp_path / "line.toml"
            path.write_text(block.text + filled_up(block), encoding="utf-8")
            load_config(path)
        elif block.language == "json":
            json.loads(block.text)


def filled_up(block: Block) -> str:
    """Add the sections that every configuration needs to a fragment."""
    if "fragment" not in block.asked:
        return ""
    given = tomllib.loads(block.text)
    missing = {name: section for name, section in MINIMAL.items() if name not in given}
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in missing.items()
    )


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, made as GitHub makes them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    """Rule: a relative link names a file of the repository, and its anchor a heading in it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{name_of(page)}: {target} is no file"
        assert goal.is_relative_to(ROOT), f"{name_of(page)}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(goal), f"{name_of(page)}: {target} is no heading; there are {anchors(goal)}"


def test_on_an_installed_station_links_lead_somewhere_too():
    """Rule: what an installed page links to is installed too: the PLC's kit and the pictures, no source file."""
    script = (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")
    listed = re.search(r'"\$here"/docs/\{([^}]+)\}', script)
    assert listed, "the installer lists the documents it copies"
    installed = [DOCS / name for name in listed[1].split(",")]
    pages = [page for place in installed for page in ([place] if place.is_file() else sorted(place.rglob("*.md")))]
    assert len(pages) > 40
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"https?://|#", target):
                continue
            goal = (page.parent / target.partition("#")[0]).resolve()
            assert any(goal.is_relative_to(place) for place in installed), f"{name_of(page)}: {target} is not installed"


def test_every_page_can_be_found():
    """Rule: each page below docs/ is linked from docs/index.md."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md")):
        assert page.name == "index.md" or f"({page.relative_to(DOCS).as_posix()})" in index, f"{name_of(page)}: orphan"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_knows_the_machine_it_was_written_on(page):
    """Rule: examples contain no absolute path of a home or working folder."""
    assert not re.search(r"/(home|root|work|tmp)/", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_reference_is_what_the_code_says(columns):
    """Rule: docs/reference/ is generated and fresh, whatever the terminal looks like."""
    environment = {**os.environ, "COLUMNS": columns, "FORCE_COLOR": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def source_text() -> str:
    """All of our code, with adjacent string literals joined as Python joins them."""
    folders = ("daemon", "drivers", "drivers/simulation", "models", "src/lineward")
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


def test_troubleshooting_quotes_messages_that_exist():
    """Rule: each message in the troubleshooting page is one that the code can print, word for word."""
    code = source_text()
    page = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        for fragment in message.split("…"):
            assert fragment.strip() in code, f"{message!r}: the code never says {fragment.strip()!r}"
