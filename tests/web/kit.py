"""What the tests of the review page share: pictures, labelled parts, the page as a process, and a browser."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import httpx
import numpy as np
import pytest
from tests.broker import free_port, wait_until
from tests.system.line import Service, toml

from lineward.daemon.label_records import Part
from lineward.daemon.ledger import Ledger
from lineward.daemon.web.people import People

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Any

    from lineward.daemon.labels import LabelStore

PASSWORDS = {"olga": "operator-pass", "tom": "technician-pass", "eve": "engineer-pass"}
ROLES = {"olga": "operator", "tom": "technician", "eve": "engineer"}
HOUR_NS = 3_600_000_000_000
UNKNOWN = "stain"
"""The defect that the first model has never seen."""

SIZE = {"width": 320, "height": 256}
SCRIPT, LINK, DOTS = 21, 22, 23
"""Parts of the page `served` that mean harm: a script as part id, and paths that lead out."""


@dataclass(frozen=True)
class FirstModel:
    """What the first model was trained on, its file, and what was computed for it."""

    data: Path
    model: Path
    cache: Path


def png(seed: int, width: int = 48, height: int = 32) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def make_part(number: int, **fields: Any) -> Part:
    image = fields.pop("image", f"{number:012x}")
    values: dict[str, Any] = dict.fromkeys(("defect_type", "model_version", "model_sha256", "camera"), "")
    values |= {"image": image, "path": f"images/bracket/{image}.png", "product": "bracket", "part_id": f"A{number}"}
    values |= {"seq": number, "created_ns": number * HOUR_NS, "origin": "line", "verdict": "review"}
    values |= {"reason": "low_confidence", "confidence": 0.6, "defect_probability": 0.4, "anomaly": 0.3}
    return Part(**{**values, "why": "uncertain", "urgency": 0.5, **fields})


def add_part(labels: LabelStore, number: int, picture: bytes = b"", **fields: Any) -> Part:
    """Put a part with its picture into a store."""
    part = make_part(number, **fields)
    path = labels.root / part.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture or png(number))
    labels.add_parts([part])
    return part


def add_to_ledger(labels: LabelStore, numbers: Iterable[int]) -> None:
    """Let the line know of the pictures as well, or the page takes them for deleted by the quota."""
    ledger = Ledger(labels.root)
    for number in numbers:
        part = make_part(number)
        ledger.add_image(part.image, number, part.path, 1000, "review")
    ledger.close()


class ReviewPage(Service):
    """`lineward review` with people of every role; the line need not run."""

    def __init__(self, folder: Path, config: Path | None = None, broker: int = 0, **review: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if config is None:
            config = folder / "line.toml"
            self.port = free_port()
            sections: dict[str, dict[str, Any]] = {
                "camera": {"driver": "simulated"},
                "inspection": {"model": "bracket"},
                "mqtt": {"port": broker or free_port()},
                "storage": {"root": "storage"},
                "review": {"port": self.port, **review},
            }
            config.write_text(toml(sections), encoding="utf-8")
        self.config = config
        self.storage = config.parent / "storage"
        self.url = ""
        self.trusted: ssl.SSLContext | bool = True
        """Who may have signed the page's certificate."""
        super().__init__(folder, "review", "--config", config)

    def add_people(self) -> ReviewPage:
        people = People(self.storage)
        for name, password in PASSWORDS.items():
            people.add(name, ROLES[name], password)
        people.close()
        return self

    def start(self) -> ReviewPage:
        super().start()
        self.wait_log("the review page is at")
        self.url = self.lines("the review page is at")[-1].split()[-1]
        wait_until(self._answers, 20, "the page answers")
        return self

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/login", verify=self.trusted).status_code == 200
        except httpx.TransportError:
            return False

    @contextmanager
    def client(self, name: str | None = None) -> Iterator[httpx.Client]:
        """Open an HTTP client, signed in as somebody."""
        origin = {"origin": self.url}
        with httpx.Client(base_url=self.url, headers=origin, timeout=20, verify=self.trusted) as client:
            if name is not None:
                answer = client.post("/login", data={"name": name, "password": PASSWORDS[name]})
                assert answer.status_code == 303, answer.text
            yield client


class Chromium:
    """Debian's Chromium, started once; each page in it is somebody else's, with cookies of their own."""

    def __init__(self, playwright: Any) -> None:
        self._browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])

    def close(self) -> None:
        self._browser.close()

    @contextmanager
    def page(self, url: str, name: str, **options: Any) -> Iterator[Any]:
        """Open a page, signed in as somebody; an error in a script or a request to elsewhere fails the test."""
        complaints: list[str] = []
        context = self._browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if foreign(request.url, url) else None)
        page.goto(f"{url}/login")
        page.fill("#name", name)
        page.fill("#password", PASSWORDS[name])
        page.keyboard.press("Enter")
        page.wait_for_url(f"{url}/")
        yield page
        context.close()
        assert not complaints, complaints


def foreign(asked: str, url: str) -> bool:
    """Tell whether a request leaves the page's own address."""
    own = (url, url.replace("http", "ws", 1), "data:", "blob:")
    return not asked.startswith(own)


def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed")
    return found
