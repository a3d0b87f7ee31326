from __future__ import annotations

import subprocess
import sys


def test_a_settled_service_is_not_searched_again() -> None:
    """Rule: what was there at the start is left out of the search for cycles, what comes later is not."""
    source = (
        "import gc\nfrom lineward.daemon import allocator, service\n"
        "before = len(gc.get_objects())\nallocator.settle()\nlater = [[] for _ in range(100)]\n"
        "print(before, len(gc.get_objects()))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 5000
    assert 100 <= after < 1000
