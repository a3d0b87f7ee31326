"""Image health on the live page: what the line says of its pictures, in words and bars."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from paho.mqtt import publish
from tests.broker import Mosquitto, needs_mosquitto
from tests.web.kit import ReviewPage

from lineward.daemon.config import load_config
from lineward.daemon.watch.reference import FIGURES
from lineward.daemon.web.health_card import words

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.system.line import Service
    from tests.web.kit import Chromium


def watching(**changes: Any) -> dict[str, Any]:
    deviation, limit = dict.fromkeys(FIGURES, 0.001), dict.fromkeys(FIGURES, 0.04)
    return {"state": "watching", "parts": 2000, "guard": True, "wrong_products": 0, "deviation": deviation} | {
        "limit": limit,
        "out": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ({}, "Not known: these figures come from the line by way of the broker."),
        ({"state": "off"}, "Not watched: watch.enabled is false in the configuration."),
        ({"state": "waiting"}, "No model is in force yet."),
        ({"state": "commissioning", "parts": 340, "of": 2000}, "Learning what is normal: 340 of 2000 parts."),
        (watching(), "As at commissioning, which took 2000 parts."),
        (watching(wrong_products=3), "As at commissioning, which took 2000 parts. 3 pictures of another product"),
        (watching(out=["brightness", "zone top left"]), "Out of its limits: light, zone top left. The alarm says"),
    ],
)
def test_each_state_is_a_sentence(watch: dict[str, Any], said: str) -> None:
    """Rule: whoever looks reads in one sentence how the pictures are."""
    assert words(watch).startswith(said)


@needs_mosquitto
def test_what_drifts_is_shown_against_its_limit(tmp_path: Path, browser: Chromium, services: list[Service]) -> None:
    """Rule: each figure has its bar, one that is out says so in words, it follows the line, and a name is only text,
    and what has no sense is left out."""
    broker = Mosquitto(tmp_path)
    shown = ReviewPage(tmp_path / "page", broker=broker.port).add_people()
    services.append(shown)
    topic = load_config(shown.config).station.base_topic.rstrip("/") + "/stats"

    def tell(watch: dict[str, Any]) -> None:
        publish.single(topic, json.dumps({"watch": watch}), qos=1, retain=True, port=broker.port)

    tell(watching())
    shown.start()
    with browser.page(shown.url, "olga") as page:
        page.wait_for_selector("text=As at commissioning, which took 2000 parts.")
        assert page.locator(".lw-figure:visible").count() == 7
        assert page.locator(".lw-zone:visible").count() == 9
        assert page.locator(".lw-out").count() == 0
        drifted = watching(out=["brightness"])
        drifted["deviation"]["brightness"] = -0.18
        for name in ("confidence", "defect_probability", "anomaly"):  # a new model's scores are being learnt
            del drifted["deviation"][name], drifted["limit"][name]
        tell(drifted)
        page.wait_for_selector("text=Out of its limits: light.")
        assert page.locator(".lw-figure.lw-out").get_attribute("aria-label") == "Light -18.0 %, limit 4.0 %, out of it"
        assert page.locator(".lw-figure:visible").count() == 4
        faults = [
            fault for fault in Axe().run(page).response["violations"] if fault["impact"] in {"serious", "critical"}
        ]
        assert not faults
        script = 'a" :title="window.owned = 1" b="'
        for name in (script, f"zone {script}"):
            drifted["deviation"][name], drifted["limit"][name] = 0.5, 0.04
        tell(drifted)
        page.wait_for_selector(".lw-figure:visible >> nth=4")
        assert page.locator(".lw-figure:visible").last.get_attribute("aria-label") == f"{script} +50.0 %, limit 4.0 %"
        assert page.locator(".lw-zone:visible").last.get_attribute("aria-label") == f"{script} +50.0 % of 4.0 %"
        assert page.evaluate("window.owned === undefined")
        wrong = {"deviation": {"contrast": "much", "brightness": [1]}, "limit": {"brightness": None}, "out": [{}, 7]}
        tell(watching(**wrong, parts="many", wrong_products={}))
        page.wait_for_selector("text=As at commissioning, which took 0 parts.")
        assert page.locator(".lw-figure:visible").count() == 0
        tell({"state": "watching", "deviation": [1], "limit": 10**400, "out": 3, "parts": float("nan")})
        tell({"state": "commissioning", "parts": 5, "of": 2000})
        page.wait_for_selector("text=Learning what is normal: 5 of 2000 parts.")
        assert page.locator(".lw-figure:visible").count() == 0
    broker.stop()
