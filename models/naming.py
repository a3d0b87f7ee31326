"""Names of products and versions: they are folders and files of the store, and stand in commands and topics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from pathlib import Path

PRODUCT = re.compile(r"\w[\w-]{0,63}")
VERSION = re.compile(r"\w[\w.+-]{0,63}")


class StoreError(BundleError):
    """The store refuses or cannot do what was asked; the message says why and what to do."""


def check_product(name: str, path: Path | None = None) -> None:
    """Raise `StoreError` unless a product may be called so; ``path`` is the bundle that says so."""
    if not PRODUCT.fullmatch(name):
        place = f"{path}: " if path else ""
        remedy = " (train with --product)" if path else ""
        raise StoreError(
            f"{place}the product {name!r} cannot be a name in the store; use letters, digits, _ and -, at most 64 "
            f"characters{remedy}"
        )


def check_version(name: str, path: Path | None = None) -> None:
    """Raise `StoreError` unless a version may be called so."""
    if not VERSION.fullmatch(name):
        place = f"{path}: " if path else ""
        raise StoreError(
            f"{place}the version {name!r} cannot be a name in the store; use letters, digits, _, -, . and +, at most "
            "64 characters"
        )


def product_of(given: str | None, out: Path) -> str:
    """Return the product of a bundle that is to be written: as given, else the name of its file, made fit.

    Raises
    ------
    StoreError
        What was given cannot be a product: better said before a training than at its promotion.
    """
    if given is not None:
        check_product(given)
        return given
    return re.sub(r"[^\w-]+", "-", out.stem).lstrip("-")[:64] or "product"
