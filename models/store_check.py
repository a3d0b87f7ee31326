"""Whether a bundle in the store is what was added, and what becomes of it when it is added again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lineward.models.bundle import Bundle, BundleError, load_bundle
from lineward.models.naming import StoreError
from lineward.models.store_files import audit, digest_path

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.records import Manifest

_ADD_AGAIN = "add the original again with `lineward models promote FILE.lward`"


def verified(path: Path) -> Bundle:
    """Load a bundle of the store and compare it with the digest that it had when it was added."""
    if not path.exists():
        raise StoreError(f"{path}: gone from the store; {_ADD_AGAIN}, or promote another version")
    expected = _digest_beside(path)
    if not expected:
        raise StoreError(
            f"{digest_path(path)}: missing or unreadable, so {path.name} may be anything; {_ADD_AGAIN}, or promote "
            "another version"
        )
    bundle = load_bundle(path)
    if expected != bundle.sha256:
        raise StoreError(
            f"{path}: not the file that was added to the store (its digest differs); {_ADD_AGAIN}, or promote another "
            "version"
        )
    if (bundle.manifest.product, bundle.manifest.version) != (path.parent.name, path.stem):
        raise StoreError(
            f"{path}: it says that it is {bundle.manifest.product} {bundle.manifest.version}; it was renamed by hand: "
            f"{_ADD_AGAIN}, or promote another version"
        )
    check_parity(path, bundle)
    return bundle


def check_parity(path: Path, bundle: Bundle) -> None:
    """Refuse a model that does not say what its training said; raises `StoreError`."""
    if not bundle.manifest.parity.verdicts_equal:
        raise StoreError(
            f"{path}: its manifest says that it gives other verdicts than its training; it must not judge parts: train "
            "or import it again"
        )


def _digest_beside(path: Path) -> str:
    """Return the digest that a bundle had when it was added, or an empty text where that cannot be read."""
    try:
        return digest_path(path).read_text(encoding="utf-8").split(maxsplit=1)[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return ""


def what_to_do(root: Path, goal: Path, bundle: Bundle) -> str:
    """Return `add`, `restore` for the original of what lies damaged in the store, or nothing for what is there already.

    Raises
    ------
    StoreError
        Another bundle is there, or a damaged one of which this is not known to be the original.
    """
    if not goal.exists():
        return "add"
    try:
        stored = verified(goal).sha256
    except BundleError:
        stored = ""
    if stored == bundle.sha256:
        return ""
    if stored:
        raise StoreError(
            f"{goal}: another model of this product and version is in the store; a version never changes, train or "
            "import the new one again, which gives it another"
        )
    if bundle.sha256 in {_digest_beside(goal), _added_last(root, bundle.manifest)}:
        return "restore"
    raise StoreError(
        f"{goal}: damaged, and the file to add is not known to be its original; add the original, or move this one and "
        f"{digest_path(goal).name} out of the store first"
    )


def _added_last(root: Path, manifest: Manifest) -> str:
    """Return the digest with which a version was added, after the audit; an empty text when that does not know it."""
    for record in reversed(audit(root)):
        same = (record.get("product"), record.get("version")) == (manifest.product, manifest.version)
        if same and record.get("what") in {"add", "restore"}:
            return str(record.get("sha256"))
    return ""


def digest_line(path: Path, bundle: Bundle) -> bytes:
    """Return what lies in the file beside a bundle, as `sha256sum -c` reads it."""
    return f"{bundle.sha256}  {path.name}\n".encode()
