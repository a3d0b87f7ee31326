"""Which values of a configuration are secrets: nobody may read them in a message, a log or a support bundle."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(taken out)"
CONFIDENTIAL = r"(?:password|passwd|passphrase|pwd|secret|token|credential|api_?key|private)"
"""What is in the name of a key whose value nobody may read; one that ends in ``_file`` names a file."""

IN_URL = re.compile(r"(?P<start>://[^/\s:@]+:)(?P<value>[^@\s/]+)(?=@)")
"""A password between the name and the host of a URL."""


def is_secret(key: str) -> bool:
    """Tell by the name of a key whether its value is a secret."""
    return re.search(CONFIDENTIAL, key, re.IGNORECASE) is not None and not key.lower().endswith("_file")


def without_secrets(value: Any, *, hide: bool = False) -> Any:
    """Return a value of the file for people to read: without what stands under secret keys; ``hide``: all of it."""
    match value:
        case dict():
            return {key: without_secrets(below, hide=hide or is_secret(str(key))) for key, below in value.items()}
        case list():
            return [without_secrets(below, hide=hide) for below in value]
        case _:
            shown = IN_URL.sub(rf"\g<start>{HIDDEN}", value) if isinstance(value, str) else value
            return HIDDEN if hide else shown
