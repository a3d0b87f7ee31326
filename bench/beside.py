"""What a training beside the line costs it: from the trigger on the wire to the answer, with and without it.

The line is the one of `bench/latency.py`, 10 triggers a second, its deadline 250 ms. It runs as systemd would run it:
before a person's session by the weight of the service (CPUWeight=1000, imitated with the priority of its session; needs
root). Alone and beside `lineward train` take turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from latency import Bench, train  # noqa: E402
from ledger import quantiles  # noqa: E402
from tests.system.line import LINEWARD, environment  # noqa: E402

from lineward.drivers.simulated import write_dataset  # noqa: E402

EVERY_S, PARTS = 0.1, 200
WEIGHT_AS_NICE = -10
"""Of ten times the usual weight: a step is a quarter more."""


def prefer(pid: int) -> None:
    """Give the session of a process the weight that the service has."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(WEIGHT_AS_NICE), encoding="ascii")


def measured(bench: Bench) -> tuple[list[float], int]:
    """Trigger parts; return the milliseconds to their answers, and how many came after the deadline or never."""
    parts = bench.trigger(EVERY_S, PARTS)
    results, wire = bench.wait_answered(parts), bench.wire()
    told = [part for part in parts if part in wire.answered]
    late = sum(results[part]["verdict"] == "undecided" for part in told if part in results)
    return [wire.ms(part) for part in told], late + len(parts) - len(told)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="quick", choices=["quick", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--after", type=float, default=3.0, help="seconds into the training; 80: the full tier tunes")
    parser.add_argument("--model", type=Path, help="a bundle, instead of training one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineward-beside-") as name:
        folder = Path(name)
        model = asked.model.absolute() if asked.model else train(folder)
        data = write_dataset(folder / "many", n_good=700, n_defect=150, width=640, height=512)
        prefer(os.getpid())  # the broker, and what stands for a PLC that is not on this machine
        bench = Bench(folder / "line", model, old_rows=0)
        prefer(bench.line.pid)
        prefer(bench.line.camera_pid())
        bench.wait_answered(bench.trigger(EVERY_S, 30))
        times: dict[str, list[float]] = {"alone": [], "beside": []}
        missed = dict.fromkeys(times, 0)
        for number in range(asked.rounds):
            command = [LINEWARD, "train", "--data", data, "--out", folder / "x.lward", "--tier", asked.tier]
            place = folder / f"home{number}"  # its own cache: from cold each time
            place.mkdir()
            for what in times:
                running = None
                if what == "beside":
                    running = subprocess.Popen(
                        [*map(str, command)],
                        cwd=place,
                        env=environment(place),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                    time.sleep(asked.after)
                found, late = measured(bench)
                times[what] += found
                missed[what] += late
                if running is not None:
                    ended = running.poll()
                    print(f"round {number}: the training {'was still running' if ended is None else 'had ended'}")
                    running.kill()
                    running.wait()
        bench.close()
    for what, values in times.items():
        print(f"{what:8}", quantiles(values), f"{missed[what]} of {PARTS * asked.rounds} missed", flush=True)
    p99 = {what: float(np.percentile(values, 99)) for what, values in times.items()}
    print(f"p99 beside a training is {p99['beside'] / p99['alone']:.2f} of p99 alone")


if __name__ == "__main__":
    main()
