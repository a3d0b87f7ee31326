"""What each fault of a camera costs the line: a frame source on the simulated GenTL producer, each fault in mid-run.

A cause's end is when the camera could be used again. For a hung call, which never ends, time counts from its beginning.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from gentl_sim import gentl_sim  # noqa: E402
from gentl_sim.station import FAULTS, Station  # noqa: E402
from lineward.drivers import process  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one; may be repeated")
    parser.add_argument("--limit-s", type=float, help="how long an order to the camera process may take")
    arguments = parser.parse_args()
    if arguments.limit_s:
        process.START_LIMIT_S = process.CALL_LIMIT_S = arguments.limit_s
    logging.getLogger("lineward").setLevel(logging.CRITICAL)  # the outages are meant
    print(f"{'fault':18}  n  resume median / max s  frames  torn stale disordered uncounted  openings  left: pids fds")
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as name:
        folder = Path(name)
        producer = gentl_sim.build(folder)
        for fault in arguments.fault or FAULTS:
            control = gentl_sim.Control(folder / f"control-{fault.replace(' ', '-')}")
            with control.in_environment():
                got = Station(producer, control, folder).suffer(FAULTS[fault], arguments.repetitions)
            median_s, longest_s = statistics.median(got.resumed_s), max(got.resumed_s)
            print(
                f"{fault:18} {len(got.resumed_s):2}  {median_s:13.2f} / {longest_s:5.2f}"
                f"  {got.frames:6}  {got.torn:4} {got.stale:5} {got.disordered:10} {got.unexplained:9}"
                f"  {got.openings:8}  {got.processes_left:10} {got.descriptors_left:3}",
                flush=True,
            )


if __name__ == "__main__":
    main()
