"""The page over TLS, with certificate and key from files: passwords and labels do not travel in the clear."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.pki import Authority, needs_openssl
from tests.system.line import call
from tests.web.kit import ReviewPage, add_part, add_to_ledger

from lineward.daemon.label_records import PASS
from lineward.daemon.labels import LabelStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.line import Service
    from tests.web.kit import Chromium

pytestmark = needs_openssl


def test_the_page_is_served_with_the_certificate_of_the_configuration(
    tmp_path: Path, browser: Chromium, services: list[Service]
) -> None:
    """Rule: who trusts the authority is served and labels over TLS, nobody else; the cookie never leaves it."""
    authority = Authority(tmp_path / "pki")
    certificate, key = authority.issue("page")
    page_ = ReviewPage(tmp_path / "page", cert_file=str(certificate), key_file=str(key)).add_people()
    services.append(page_)
    page_.trusted = ssl.create_default_context(cafile=authority.certificate)
    store = LabelStore(page_.storage)
    image = add_part(store, 1, urgency=0.9).image
    add_part(store, 2, urgency=0.1)
    add_to_ledger(store, (1, 2))
    page_.start()
    assert page_.url.startswith("https://")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{page_.url}/login")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{page_.url}/login".replace("https", "http"))
    with page_.client() as client:
        answer = client.post("/login", data={"name": "tom", "password": "technician-pass"})
        assert "; secure" in answer.headers["set-cookie"].lower()
        assert answer.headers["strict-transport-security"]
    with browser.page(page_.url, "tom", ignore_https_errors=True) as page:
        page.goto(f"{page_.url}/review", wait_until="commit")
        page.wait_for_function("window.did_handshake === true && window.lineward && lineward.shown() !== ''")
        page.keyboard.press("p")
        page.wait_for_function("image => lineward.shown() !== image && lineward.shown() !== ''", arg=image)
    assert [label.decision for label in store.labels(image)] == [PASS]
    store.close()


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Rule: the page does not start in the clear instead; one line says which file is wrong and where that is set."""
    authority = Authority(tmp_path / "pki")
    certificate, _ = authority.issue("page")
    _, other_key = authority.issue("other")
    for cert_file, key_file, said in (
        (
            tmp_path / "gone.crt",
            other_key,
            "review.cert_file = '{}/gone.crt': cannot be read: No such file or directory",
        ),
        (certificate, other_key, "the key does not belong to the certificate"),
    ):
        page_ = ReviewPage(tmp_path / "page", cert_file=str(cert_file), key_file=str(key_file))
        done = call(tmp_path, "review", "--config", page_.config)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert said.format(tmp_path) in done.stderr
