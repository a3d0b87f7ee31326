"""What each fault of a camera costs the line: on the simulated GenTL producer, each fault in mid-run, many times.

A cause's end is when the camera could be used again. For a hung call, which never ends, time counts from its beginning.
Meanwhile another thread of the inspection process wants to run every 2 ms: "held up" says by how much it came too late
at most and how often by more than 20 ms. "Neighbour" is the same of a process that has nothing to do with cameras: what
the machine does to any program. The row "none" is a line without a fault.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from gentl_sim import gentl_sim  # noqa: E402
from gentl_sim.station import FAULTS, NO_FAULT, Outcome, Station  # noqa: E402
from gentl_sim.ticker import Neighbour  # noqa: E402


def line(fault: str, got: Outcome, neighbour_ms: list[float]) -> str:
    """Return a fault's row of the table."""
    return (
        f"{fault:17}{len(got.resumed_s):3}{statistics.median(got.resumed_s):8.2f}{max(got.resumed_s):7.2f}"
        f"{max(got.stalls_ms):9.1f}{sum(ms > 20 for ms in got.stalls_ms):5}"
        f"{max(neighbour_ms):10.1f}{sum(ms > 20 for ms in neighbour_ms):5}"
        f"{got.frames:8}{got.torn:6}{got.stale:6}{got.disordered:7}{got.unexplained:10}"
        f"{got.openings:9}{got.processes_left:6}{got.descriptors_left:4}{got.memory_left:7}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    print(
        f"{'':20}{'resumed after s':>15}{'held up ms':>14}{'neighbour':>15}{'':20}{'out of':>7}{'not':>10}"
        f"{'':9}{'left behind':>17}"
    )
    print(
        f"{'fault':17}{'n':>3}{'p50':>8}{'max':>7}{'max':>9}{'>20':>5}{'max':>10}{'>20':>5}{'frames':>8}{'torn':>6}"
        f"{'stale':>6}{'order':>7}{'counted':>10}{'openings':>9}{'pids':>6}{'fds':>4}{'memfds':>7}"
    )
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as name:
        folder = Path(name)
        producer = gentl_sim.build(folder)
        wanted = {"none": NO_FAULT} | {fault: FAULTS[fault] for fault in arguments.fault or FAULTS}
        for fault, what in wanted.items():
            control = gentl_sim.Control(folder / f"control-{fault.replace(' ', '-')}")
            neighbour = Neighbour()
            with control.in_environment():
                got = Station(producer, control).suffer(what, arguments.repetitions)
            print(line(fault, got, neighbour.stop()), flush=True)


if __name__ == "__main__":
    main()
