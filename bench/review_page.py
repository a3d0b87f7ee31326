"""How quickly the review page shows something and takes a label: 100,000 parts, 20,000 kept, beside a running line.

Drives Debian's Chromium and reads its own clock. ``html`` is until the answer of the server begins, ``paint`` from
the call of an address until what the page is for can be seen, ``label`` from the key until the next picture is whole
and the next frame is drawn. ``--parts`` and ``--flagged`` give other sizes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from ledger import draft
from playwright.sync_api import sync_playwright

from lineward.daemon.ledger import Ledger
from lineward.daemon.web.people import People
from lineward.drivers.simulated import write_dataset
from lineward.drivers.simulation.scene import Renderer
from lineward.models import store
from lineward.models.quick import train_quick

PRODUCT, PASSWORD = "bracket", "a bench's password"
PICTURES = 200
SECOND_NS = 1_000_000_000
PORT = 18_439
PAGES = {
    "/": ".lw-hero.lw-pass, .lw-hero.lw-review, .lw-hero.lw-fail",
    "/review": ".lw-part[src]",
    "/conflicts": ".lw-empty",
    "/data": ".lw-table td",
    "/improve": "button.lw-main",
}
LABELS, ROUNDS = 100, 10

SEEN = """selector => {
    const found = [...document.querySelectorAll(selector)].find(element => element.offsetParent);
    return found && (found.tagName !== "IMG" || found.complete) && performance.now();
}"""
BEGAN = "performance.getEntriesByType('navigation')[0].responseStart"
WATCH_KEYS = """() => {
    window.took = [];
    document.addEventListener("keydown", () => {
        const began = performance.now(), before = lineward.shown();
        const look = () => {
            const now = lineward.shown();
            if (now && now !== before) took.push(performance.now() - began);
            else requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
    }, true);
}"""
"""How long each key takes until another picture can be seen, as a person's eye would."""


def main() -> None:
    """Fill a store, start the line and the page, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--flagged", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as folder:
        measure(Path(folder), asked.parts, asked.flagged)


def measure(folder: Path, parts: int, flagged: int) -> None:
    """Print paint and label times in milliseconds."""
    root = folder / "storage"
    began = time.monotonic()
    fill(root, parts, flagged)
    data = write_dataset(folder / "base", n_good=60, n_defect=30, width=320, height=256)
    train_quick(data, folder / "first.lward", product=PRODUCT, cache_dir=folder / "cache")
    entry = store.add(root, folder / "first.lward", who="bench")
    store.promote(root, entry.product, entry.version, who="bench")
    people = People(root)
    people.add("bench", "engineer", PASSWORD)
    people.close()
    config = folder / "line.toml"
    config.write_text(
        '[camera]\ndriver = "simulated"\nwidth = 640\nheight = 512\nrate_hz = 5\n[inspection]\nmodel = "bracket"\n'
        f'[mqtt]\nport = 1\n[storage]\nroot = "storage"\n[review]\nport = {PORT}\n'
    )
    print(f"{parts} parts, {flagged} of them kept; filled in {time.monotonic() - began:.0f} s")
    line, page = start("run", config), start("review", config)
    try:
        url = f"http://127.0.0.1:{PORT}"
        wait(url)
        drive(url)
    finally:
        for process in (page, line):
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    rows = sqlite3.connect(root / "ledger.sqlite3").execute(
        "SELECT json_extract(payload, '$.latency_ms.total') FROM results WHERE seq > ?", (parts,)
    )
    totals = np.array([row[0] for row in rows if row[0] is not None])
    print(
        f"the line meanwhile: {len(totals)} parts, p50 {np.median(totals):.1f}, p99 {np.quantile(totals, 0.99):.1f} ms"
    )


def start(command: str, config: Path) -> subprocess.Popen[bytes]:
    """Start a command of `lineward` beside this one."""
    program = Path(sys.executable).with_name("lineward")
    return subprocess.Popen(
        [program, command, "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait(url: str) -> None:
    """Wait until the page answers."""
    for _ in range(600):
        try:
            if httpx.get(f"{url}/login").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the page does not answer")


def drive(url: str) -> None:
    """Open each page a few times and label parts by keyboard."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/login")
        page.fill("#name", "bench")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{url}/")
        began = time.perf_counter()
        page.goto(f"{url}/review")
        page.wait_for_selector(".lw-part[src]")
        print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(
            f"the first call, which takes all kept parts into the queue: {1e3 * (time.perf_counter() - began):.0f} ms"
        )
        for path, selector in PAGES.items():
            figures = [open_page(page, url + path, selector) for _ in range(ROUNDS)]
            html, paint = zip(*figures, strict=True)
            print(
                f"paint {path:<12s} median {np.median(paint):.0f}, slowest {max(paint):.0f} ms of {ROUNDS}; "
                f"html median {np.median(html):.0f} ms"
            )
        page.goto(f"{url}/review", wait_until="commit")
        page.wait_for_function("window.did_handshake === true && window.lineward && lineward.shown() !== ''")
        page.evaluate(WATCH_KEYS)
        for number in range(LABELS):
            page.keyboard.press("p" if number % 5 else "s")
            page.wait_for_function("count => took.length === count", arg=number + 1)
        times = page.evaluate("took")
        print(
            f"label median {np.median(times):.0f}, p90 {np.quantile(times, 0.9):.0f}, "
            f"p99 {np.quantile(times, 0.99):.0f}, slowest {max(times):.0f} ms of {LABELS}"
        )
        browser.close()


def open_page(page: Any, url: str, selector: str) -> tuple[float, float]:
    """Return the milliseconds until the server's answer began and until what the page is for could be seen."""
    page.goto(url, wait_until="commit")
    seen = page.wait_for_function(SEEN, arg=selector).json_value()
    return float(page.evaluate(BEGAN)), float(seen)


def fill(root: Path, parts: int, flagged: int) -> None:
    """Write a ledger with many answers of the last day, and pictures for some of them."""
    ledger = Ledger(root)
    ledger.record(draft(0))
    ledger.close()
    images = root / "images" / PRODUCT / "bench"
    images.mkdir(parents=True)
    renderer = Renderer(PRODUCT)
    for number in range(PICTURES):
        cv2.imwrite(str(images / f"{number}.png"), renderer.render(number)[0], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    now = time.time_ns()
    draw = np.random.default_rng(0)
    every = max(1, parts // flagged)
    db = sqlite3.connect(root / "ledger.sqlite3")
    names = [row[1] for row in db.execute("PRAGMA table_info(results)")]
    pattern = dict(zip(names, db.execute("SELECT * FROM results").fetchone(), strict=True))
    payload = pattern["payload"].decode()
    rows, kept = [], []
    for seq in range(2, parts + 1):
        at = now - (parts - seq) * SECOND_NS // 5
        verdict = "review" if seq % every == 0 else "pass"
        text = payload.replace('"verdict":"pass"', f'"verdict":"{verdict}"').replace(
            '"product":"tiles"', '"product":"bracket"'
        )
        text = text.replace('"defect_probability":0.01', f'"defect_probability":{draw.random():.3f}')
        values = {
            "seq": seq,
            "trigger_ns": at,
            "recorded_ns": at,
            "verdict": verdict,
            "acked": 1,
            "payload": text.encode(),
        }
        rows.append(tuple({**pattern, **values, "product": PRODUCT, "part_id": f"A{seq}"}.values()))
        if verdict == "review" and len(kept) < flagged:
            image = f"{at // 1000:x}"
            path = images / f"{seq}-{image}.png"
            os.link(images / f"{seq % PICTURES}.png", path)
            size = path.stat().st_size  # the line lets go of what is not as long as its row says
            kept.append((image, seq, path.relative_to(root).as_posix(), size, verdict, at))
    with db:
        db.executemany(f"INSERT INTO results VALUES ({', '.join('?' * len(names))})", rows)  # noqa: S608 - marks
        db.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", kept)
    db.close()


if __name__ == "__main__":
    main()
