"""`lineward demo`: a whole line on one machine, and what it got right."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lineward import __version__
from lineward.daemon import log, service
from lineward.daemon.broker import EmbeddedBroker, broker_config
from lineward.daemon.config import Config
from lineward.daemon.demo_page import review_page
from lineward.daemon.ledger import Ledger
from lineward.daemon.ledger_read import LedgerReader
from lineward.daemon.progress import cache_dir, progress_bar
from lineward.drivers.simulated import write_dataset
from lineward.drivers.simulation.products import PRODUCTS
from lineward.drivers.simulation.scene import truth
from lineward.models import store
from lineward.models.bundle import BundleError, load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lineward.daemon.ledger_read import Row

SEED = 1000
"""One line with its machine, light and camera. The training takes parts from far ahead (`dataset.FIRST_INDEX`), so none
of them ever passes by."""

GOOD, DEFECTIVE = 800, 200
"""What a new product is promised to need."""

DEFECT_RATE = 0.15
WIDTH, HEIGHT = 640, 512
INPUT_WIDTH, INPUT_HEIGHT = 496, 400
"""Half the picture's area: at 320 x 320 the finer scratches and cracks are gone (0.50 against 0.58 found at 2 % false
rejects), the full size finds no more."""


class DemoError(ValueError):
    """The demo cannot be run as it was asked for; the message names what there is."""


def run_demo(
    *,
    seconds: float | None,
    parts: int | None,
    rate_hz: float,
    headless: bool,
    product: str,
    folder: Path | None,
) -> None:
    """Train on first use, then inspect simulated parts until told to stop, and compare with the simulation's truth."""
    home = folder or cache_dir() / "demo"
    log.set_up("INFO", parts=True, stream=sys.stdout)  # its lines are what a person called it for
    say = logging.getLogger("lineward.demo").info
    model = ensure_model(home, product, quiet=headless)
    storage = home / "line"
    ledger = Ledger(storage)
    start = ledger.last_seq
    ledger.close()
    judged_product = put_into_store(storage, model)
    with ExitStack() as stack:
        stop = stack.enter_context(service.stop_on_signals())
        broker = stack.enter_context(EmbeddedBroker())
        sections: dict[str, dict[str, Any]] = {
            "station": {"site": "demo", "line": "line1", "name": product},
            "camera": {
                "driver": "simulated",
                "product": product,
                "seed": SEED,
                "start_index": start,  # parts that no demo saw before
                "width": WIDTH,
                "height": HEIGHT,
                "rate_hz": rate_hz,
                "defect_rate": DEFECT_RATE,
                "limit": None if parts is None else start + parts,
            },
            "inspection": {"model": judged_product},
            "mqtt": broker_config(broker),
            "storage": {"root": str(storage)},
            "review": {"base_data": str(home / "images")},
        }
        config = Config.model_validate(sections)
        if not headless:
            say("review page: %s", stack.enter_context(review_page(home / "line.toml", sections, storage)))
        say("broker on 127.0.0.1:%d; watch it: mosquitto_sub -p %d -t 'lineward/#' -v", broker.port, broker.port)
        say("uncertain parts are kept in %s; stop with Ctrl-C", storage / "images")
        timer = threading.Timer(seconds, stop.set) if seconds is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        health = service.run(config, stop)
        if timer is not None:
            timer.cancel()
    rows = list(LedgerReader(storage / "ledger.sqlite3").rows(after_seq=start))
    for line in summary(rows, product=product):
        say("%s", line)
    say("trigger to answer in milliseconds: %s", ", ".join(f"{name} {ms}" for name, ms in health.latency_ms().items()))


def ensure_model(home: Path, product: str, *, quiet: bool) -> Path:
    """Return the demo's model for a product; render images and train it when there is none of this version yet."""
    if product not in PRODUCTS:
        raise DemoError(f"--product {product!r}: there is no such simulated product; there are {', '.join(PRODUCTS)}")
    say = logging.getLogger("lineward.demo").info
    bundle = home / "models" / f"{product}-{__version__}-{GOOD}-{DEFECTIVE}-{INPUT_WIDTH}.lward"
    try:
        load_manifest(bundle)
    except BundleError:
        pass
    else:
        return bundle
    from lineward.models.quick import train_quick  # noqa: PLC0415 - 150 MB that a demo with a model does not need

    say("first use: training a model for the simulated product %r (once)", product)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    images = home / "images" / product  # stay: a training on the review page begins with them
    shutil.rmtree(images, ignore_errors=True)
    with progress_bar(quiet=quiet) as progress:
        write_dataset(
            images,
            product=product,
            seed=SEED,
            n_good=GOOD,
            n_defect=DEFECTIVE,
            width=WIDTH,
            height=HEIGHT,
            progress=lambda done, of: progress("rendering images", done, of),
        )
        report = train_quick(
            images,
            bundle,
            product=product,
            cache_dir=home / "features",
            progress=progress,
            height=INPUT_HEIGHT,
            width=INPUT_WIDTH,
        )
    for line in report.sentences():
        say("%s", line)
    return bundle


def put_into_store(storage: Path, model: Path) -> str:
    """Let a new model of the demo judge; one that was promoted on the page since stays. Returns its product."""
    known = {(entry.product, entry.version) for entry in store.list_models(storage)}
    entry = store.add(storage, model, who="demo")
    if (entry.product, entry.version) not in known:
        store.promote(storage, entry.product, entry.version, who="demo")
    return entry.product


def summary(rows: Sequence[Row], *, product: str) -> list[str]:
    """Compare answers with what was really on the belt; the simulation knows."""
    if not rows:
        return ["no part was inspected"]
    table: Counter[tuple[bool, str]] = Counter()
    escapes: list[str] = []
    for row in rows:
        if row.frame_id is None:
            continue
        really = truth(row.frame_id, product=product, seed=SEED, defect_rate=DEFECT_RATE)
        table[really.good, row.verdict] += 1
        if not really.good and row.verdict == "pass":
            escapes.append(f"{really.defect_type} {really.severity:.2f}")
    verdicts = Counter(row.verdict for row in rows)
    n_good = sum(n for (good, _), n in table.items() if good)
    n_bad = sum(n for (good, _), n in table.items() if not good)
    lines = [
        f"{len(rows)} parts, {len(rows)} answers: "
        + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common()),
        f"of {n_good} good parts {table[True, 'fail']} were rejected and {table[True, 'review']} sent to review",
        (
            f"of {n_bad} defective parts {table[False, 'pass']} escaped, {table[False, 'fail']} were rejected, "
            f"{table[False, 'review']} sent to review"
        ),
    ]
    if escapes:
        lines.append("escaped, with severity (below 0.3: barely visible, 1: obvious): " + ", ".join(escapes))
    return lines
