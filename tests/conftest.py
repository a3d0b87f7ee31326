"""What holds for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.broker import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _nobody_listens_on() -> Iterator[None]:
    """A test that failed leaves no client that tries to reach a broker for ever, beside the tests after it."""
    yield
    Subscriber.close_all()
