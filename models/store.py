"""The model store: ``<root>/models/<product>/<version>.lward`` and a ``current`` pointer beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineward.models.bundle import BundleError

if TYPE_CHECKING:
    from pathlib import Path

CURRENT = "current"


def resolve_model(root: Path, model: Path) -> Path:
    """Find the bundle that a configuration means: a file, or the current version of a product in the store.

    Raises
    ------
    BundleError
        There is no such product in the store, or nothing is promoted.
    """
    if model.suffix:
        return model
    folder = root / "models" / model
    pointer = folder / CURRENT
    try:
        version = pointer.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BundleError(
            f"{folder}: the store has no current model for {str(model)!r}; "
            "give a .lward file in inspection.model instead"
        ) from error
    return folder / f"{version}.lward"
