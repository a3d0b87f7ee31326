"""Does anything stay behind when camera processes are replaced and streams restarted, again and again.

The inspection process replaces a camera process that has grown too large, for months. A recycle is close, open,
configure, start and one frame; a start/stop is the same on a camera process that stays. Growth is told from the first
reading after a warm-up to the last: resident size, and open files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from gentl_sim import gentl_sim  # noqa: E402
from gentl_sim.recycles import growth, repeat  # noqa: E402
from lineward.drivers.process import CameraProcess  # noqa: E402

HEAD = f"""{"":32}{"resident MB":>24}{"growth":>9}{"open files":>13}
{"":11}{"times":>7}  {"process":12}{"first":>8}{"last":>8}{"most":>8}{"%":>9}{"first":>8}{"last":>5}{"took s":>7}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recycles", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=2000)
    arguments = parser.parse_args()
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="lineward-bench-") as name:
        producer = gentl_sim.build(Path(name))
        with gentl_sim.Control(Path(name) / "control").in_environment():
            for what, number in (("recycles", arguments.recycles), ("start/stops", arguments.starts)):
                camera = CameraProcess("genicam", {"producers": [str(producer)], "serial": "SIM-A"})
                began = time.monotonic()
                for whose, seen in repeat(camera, what, number).items():
                    print(
                        f"{what:11}{number:7}  {whose:12}{seen[0].rss_kb / 1e3:8.1f}{seen[-1].rss_kb / 1e3:8.1f}"
                        f"{max(r.rss_kb for r in seen) / 1e3:8.1f}{growth(seen):+9.2f}{seen[0].files:8}"
                        f"{seen[-1].files:5}{time.monotonic() - began:7.0f}",
                        flush=True,
                    )
                camera.close()


if __name__ == "__main__":
    main()
