"""The ledger as a flat table: one row per answer, for `lineward ledger list --json`, CSV and Parquet."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from lineward.daemon.ledger_read import PAGE
from lineward.daemon.result import rfc3339
from lineward.extras import how_to_add

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lineward.daemon.ledger_read import LateRow, LedgerReader, Row

GROUP = 20_000
"""Rows of one Parquet row group: 40 MB while it is put together."""

COLUMNS = {
    "seq": "int64",
    "triggered": "time",
    "recorded": "time",
    "deadline": "time",
    "verdict": "string",
    "reason": "string",
    "confidence": "double",
    "defect_probability": "double",
    "anomaly": "double",
    "defect_type": "string",
    "part_id": "string",
    "trigger_id": "string",
    "trigger_no": "int64",
    "product": "string",
    "model_version": "string",
    "model_sha256": "string",
    "camera_serial": "string",
    "frame_id": "int64",
    "grab_ms": "double",
    "prepare_ms": "double",
    "infer_ms": "double",
    "total_ms": "double",
    "simulated": "bool",
    "late": "bool",
    "acknowledged": "bool",
    "image": "string",
    "late_verdict": "string",
    "late_defect_probability": "double",
    "late_recorded": "time",
}
"""Name and kind of each column. Times are UTC: RFC 3339 in CSV and JSON, timestamps of microseconds in
Parquet, which Python reads without pandas."""

TIMES = [name for name, kind in COLUMNS.items() if kind == "time"]


class ExportError(ValueError):
    """The export cannot be written; the message says what to do."""


def flat(row: Row, late: LateRow | None) -> dict[str, Any]:
    """Lay one answer out flat; times in nanoseconds since 1970."""
    payload = json.loads(row.payload)
    latency = payload.get("latency_ms", {})
    return {
        "seq": row.seq,
        "triggered": row.trigger_ns,
        "recorded": row.recorded_ns,
        "deadline": row.deadline_ns,
        "verdict": row.verdict,
        "reason": row.reason,
        "confidence": row.confidence,
        "defect_probability": payload.get("defect_probability"),
        "anomaly": payload.get("anomaly"),
        "defect_type": payload.get("defect_type"),
        "part_id": row.part_id,
        "trigger_id": _storable(payload.get("trigger_id", "")),
        "trigger_no": row.trigger_no,
        "product": row.product,
        "model_version": payload.get("model", {}).get("version"),
        "model_sha256": row.model_sha256,
        "camera_serial": row.camera_serial,
        "frame_id": row.frame_id,
        "grab_ms": latency.get("grab"),
        "prepare_ms": latency.get("prepare"),
        "infer_ms": latency.get("infer"),
        "total_ms": latency.get("total"),
        "simulated": payload.get("simulated"),
        "late": row.late,
        "acknowledged": row.acked,
        "image": payload.get("image"),
        "late_verdict": None if late is None else late.verdict,
        "late_defect_probability": None if late is None else late.defect_probability,
        "late_recorded": None if late is None else late.recorded_ns,
    }


def _storable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def readable(record: dict[str, Any]) -> dict[str, Any]:
    """Write the times of a flat record as RFC 3339."""
    for name in TIMES:
        if record[name] is not None:
            record[name] = rfc3339(record[name])
    return record


def records(reader: LedgerReader, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Lay out rows one by one, with the verdicts that came too late for them; a page of rows at a time in memory."""
    iterator = iter(rows)
    while page := list(islice(iterator, PAGE)):
        late = reader.late_verdicts(page[0].seq, page[-1].seq)
        for row in page:
            yield flat(row, late.get(row.seq))


def export(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write flat records to FILE.csv or FILE.parquet and return how many; a file that is there is replaced at the end.

    Raises
    ------
    ExportError
        The ending is neither, Parquet cannot be written on this machine, or the disk refuses it; nothing is left
        behind.
    """
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    try:
        write = writers[path.suffix.lower()]
    except KeyError:
        raise ExportError(f"{path}: the ending says what to write: name it FILE.csv or FILE.parquet") from None
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        count = write(unfinished, rows)
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own names the unfinished file
            raise ExportError(f"{path}: cannot be written: {reason}; choose another place") from error
        raise
    return count


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        return _csv_rows(file, rows)


def _csv_rows(file: TextIO, rows: Iterable[dict[str, Any]]) -> int:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    count = 0
    for record in rows:
        for name, kind in COLUMNS.items():
            if kind == "bool" and record[name] is not None:
                record[name] = str(record[name]).lower()
        writer.writerow(readable(record))
        count += 1
    return count


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ExportError(
            f"{path}: Parquet needs pyarrow, which is not installed; install it with `{how_to_add('pyarrow')}`, "
            "or name a .csv file"
        ) from error
    return pa


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    pa = _pyarrow(path)
    kinds = {
        "int64": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    iterator, count = iter(rows), 0
    with pa.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(iterator, GROUP)):
            for record in group:
                for name in TIMES:
                    record[name] = None if record[name] is None else record[name] // 1000
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count
