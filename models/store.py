"""The model store: every version of every product, which one judges, which did before, and who decided that.

::

    <root>/models/audit.jsonl                   one line for each decision, only ever appended to
    <root>/models/<product>/<version>.lward     a bundle, never changed once it is there
    <root>/models/<product>/<version>.sha256    its digest, as `sha256sum --check` reads it
    <root>/models/<product>/current             the version that judges, below it those before it, newest first

`current` is replaced in one step, so a reader sees the old or the new one, and it is its own history: a rollback drops
the first line. How files are changed is in `lineward.models.store_files`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lineward.models.bundle import BundleError, load_bundle
from lineward.models.naming import StoreError, check_product, check_version
from lineward.models.parity import try_out
from lineward.models.store_check import check_parity, digest_line, verified, what_to_do
from lineward.models.store_files import (
    CURRENT,
    PointerError,
    append_audit,
    audit,
    bundle_path,
    digest_path,
    folders,
    locked,
    read_pointer,
    user,
    write_pointer,
    write_whole,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lineward.models.records import Manifest

__all__ = [
    "Entry",
    "StoreError",
    "add",
    "audit",
    "current",
    "history",
    "list_models",
    "not_promotable",
    "promote",
    "resolve_model",
    "rollback",
    "show",
    "user",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one product. ``trouble`` is empty, or says why the file cannot be used; then no manifest.

    ``version`` is empty where a damaged `current` leaves open which one judges.
    """

    product: str
    version: str
    path: Path
    current: bool
    trouble: str
    sha256: str
    manifest: Manifest | None

    def to_json(self) -> dict[str, object]:
        """Return what `lineward models list --json` prints for it."""
        manifest = self.manifest
        return {
            "product": self.product,
            "version": self.version,
            "file": str(self.path),
            "current": self.current,
            "ok": not self.trouble,
            "trouble": self.trouble,
            "sha256": self.sha256,
            "created": manifest.created if manifest else None,
            "tier": manifest.tier if manifest else None,
            "promotable": bool(manifest and not not_promotable(manifest)),
            "holdout": manifest.holdout.to_json() if manifest else None,
        }


def resolve_model(root: Path, model: Path) -> Path:
    """Find the bundle that a configuration means: a file, or the current version of a product in the store.

    Raises
    ------
    BundleError
        There is no such product in the store, nothing is promoted, or the file is not the one that was added.
    """
    if model.suffix:
        return model
    path = current(root, str(model))
    if path is None:
        raise StoreError(
            f"{root / 'models' / model}: the store has no current model for {str(model)!r}; promote one with "
            "`lineward models promote FILE.lward`, or give a .lward file in inspection.model"
        )
    # A running service asks every second: reading 20 MB each time would cost it more than a part does.
    state = _state(path)
    seen, fault = _LOOKED_AT.get(path, (None, None))
    if state is None or seen != state:
        try:
            verified(path)
            fault = None
        except BundleError as error:
            fault = str(error)
        _LOOKED_AT[path] = state, fault
    if fault is not None:
        raise StoreError(fault)
    return path


_LOOKED_AT: dict[Path, tuple[tuple[int, ...] | None, str | None]] = {}
"""Files that `resolve_model` has looked at in this process, what they and their digests looked like, what was wrong."""


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a bundle or its digest is touched; None when one of them is missing."""
    try:
        found = [file.stat() for file in (path, digest_path(path))]
    except OSError:
        return None
    return tuple(value for stat in found for value in (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


def current(root: Path, product: str) -> Path | None:
    """Return the bundle file that judges a product, or None when nothing is promoted; nothing is verified.

    It costs one small read, so a running service may call it every second to see a promotion.
    """
    versions = read_pointer(root / "models" / product)
    return bundle_path(root, product, versions[0]) if versions else None


def history(root: Path, product: str) -> tuple[str, ...]:
    """Return the versions that judged, the present one first; what was rolled back is not among them.

    Empty when `current` is damaged, which `show` and `list_models` report.
    """
    try:
        return tuple(read_pointer(root / "models" / product))
    except PointerError:
        return ()


def list_models(root: Path, product: str | None = None) -> list[Entry]:
    """Return every version in the store, products by name, versions by time of making; each file is verified.

    A product whose `current` cannot be read has a further entry that says so.
    """
    models = root / "models"
    names = [product] if product is not None else sorted(path.name for path in folders(models))
    found: list[Entry] = []
    for name in names:
        pointer, trouble = [], ""
        try:
            pointer = read_pointer(models / name)
        except StoreError as error:
            trouble = str(error)
        entries = [
            _entry(name, path, is_current=path.stem == (pointer[0] if pointer else None))
            for path in sorted((models / name).glob("*.lward"))
        ]
        if pointer and pointer[0] not in {entry.version for entry in entries}:
            path = bundle_path(root, name, pointer[0])
            entries.append(Entry(name, pointer[0], path, True, f"{path}: the current model's file is gone", "", None))
        if trouble:
            entries.append(Entry(name, "", models / name / CURRENT, True, trouble, "", None))
        found += sorted(entries, key=lambda entry: (entry.manifest.created if entry.manifest else "", entry.version))
    return found


def show(root: Path, product: str, version: str | None = None) -> Entry:
    """Return one version, by default the current one.

    Raises
    ------
    StoreError
        It is not in the store, or nothing is promoted.
    """
    check_product(product)
    entries = list_models(root, product)
    for entry in entries:
        if entry.current if version is None else entry.version == version:
            return entry
    if version is None:
        raise StoreError(
            f"{root / 'models' / product}: no version of {product!r} is promoted"
            + (f"; there are {_names(entries)}" if entries else "; add one with `lineward models promote FILE.lward`")
        )
    raise _unknown(root, product, version, entries)


def add(root: Path, path: Path, *, who: str | None = None) -> Entry:
    """Copy a bundle into the store, verified and whole or not at all.

    Adding it again changes nothing; where it lies damaged in the store it is restored, and the audit says so.

    Raises
    ------
    BundleError
        The file is damaged, of an unknown format, or of a name that cannot be a file's; another file is already there
        under the same product and version, or a damaged one of which this is not known to be the original; or the
        store cannot be written to.
    """
    bundle = load_bundle(path)
    check_parity(path, bundle)
    product, version = bundle.manifest.product, bundle.manifest.version
    check_product(product, path)
    check_version(version, path)
    with locked(root):
        goal = bundle_path(root, product, version)
        what = what_to_do(root, goal, bundle)
        if what:
            goal.parent.mkdir(parents=True, exist_ok=True)
            append_audit(root, what, product, version, who, sha256=bundle.sha256)
            # The digest first: a bundle that is there always has one.
            write_whole(digest_path(goal), digest_line(goal, bundle))
            write_whole(goal, bundle.data)
    return show(root, product, version)


def promote(root: Path, product: str, version: str, *, force: bool = False, who: str | None = None) -> Entry:
    """Make a version in the store the one that judges; promoting the current one changes nothing.

    Where `current` is damaged a new one is written, and what judged before can be read in the audit only.

    Parameters
    ----------
    root
        The storage folder, `storage.root` of the configuration.
    product, version
        Which.
    force
        Promote even what its own training found not promotable.
    who
        Who decided; by default the user who is logged in.

    Raises
    ------
    BundleError
        There is no such version, its file is not the one that was added, it cannot be run on this machine, or it is
        not promotable.
    """
    check_product(product)
    check_version(version)
    with locked(root):
        path = bundle_path(root, product, version)
        if not path.is_file():
            raise _unknown(root, product, version, list_models(root, product))
        bundle = verified(path)
        reason = not_promotable(bundle.manifest)
        if reason and not force:
            raise StoreError(f"{path}: not promoted: {reason}; train again, or promote it with --force")
        extra = {"forced": reason} if reason else {}
        try:
            versions = read_pointer(path.parent)
        except PointerError:
            versions = []
            extra["mended"] = f"{CURRENT} was damaged"
        if versions[:1] != [version]:
            try_out(path)
            before = versions[0] if versions else None
            append_audit(root, "promote", product, version, who, before=before, sha256=bundle.sha256, **extra)
            write_pointer(path.parent, [version, *versions])
    return show(root, product, version)


def rollback(root: Path, product: str, *, who: str | None = None) -> Entry:
    """Let the version judge that judged before the current one; a second rollback goes one further back.

    Raises
    ------
    BundleError
        No version was promoted before this one, the file of that one is damaged, or `current` is.
    """
    check_product(product)
    with locked(root):
        folder = root / "models" / product
        versions = read_pointer(folder)
        if len(versions) < 2:
            what = f"nothing judged before {versions[0]}" if versions else "nothing is promoted"
            raise StoreError(
                f"{folder}: there is nothing to roll back to: {what}; another version is put in force with "
                f"`lineward models promote {product} VERSION`"
            )
        bundle = verified(bundle_path(root, product, versions[1]))
        append_audit(root, "rollback", product, versions[1], who, before=versions[0], sha256=bundle.sha256)
        write_pointer(folder, versions[1:])
    return show(root, product)


def not_promotable(manifest: Manifest) -> str:
    """Return why a bundle's own training found that it must not judge, or an empty text."""
    if manifest.promotable:
        return ""
    return manifest.not_promotable or "its own training marked it as not promotable"


def _entry(product: str, path: Path, *, is_current: bool) -> Entry:
    try:
        bundle = verified(path)
    except BundleError as error:
        return Entry(product, path.stem, path, is_current, str(error), "", None)
    return Entry(product, path.stem, path, is_current, "", bundle.sha256, bundle.manifest)


# ---- messages


def _unknown(root: Path, product: str, version: str, entries: list[Entry]) -> StoreError:
    there = (
        f"there are {_names(entries)}" if entries else "there is none; add one: `lineward models promote FILE.lward`"
    )
    return StoreError(f"{root / 'models' / product}: no version {version!r} of {product!r}; {there}")


def _names(entries: list[Entry]) -> str:
    return ", ".join(entry.version for entry in entries if entry.version)
