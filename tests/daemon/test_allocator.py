from __future__ import annotations

import subprocess
import sys


def numbers(source: str) -> tuple[int, ...]:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


def test_a_settled_service_is_not_searched_again() -> None:
    """Rule: what was there at the start is left out of the search for cycles, what comes later is not."""
    source = (
        "import gc\nfrom lineward.daemon import allocator, service\n"
        "before = len(gc.get_objects())\nallocator.settle()\nlater = [[] for _ in range(100)]\n"
        "print(before, len(gc.get_objects()))\n"
    )
    before, after = numbers(source)
    assert before > 5000
    assert 100 <= after < 1000


def test_a_training_does_not_ask_twice_for_what_it_freed() -> None:
    """Rule: a block of 64 MiB that was freed is there again without a page of it cleared by the system."""
    source = (
        "import ctypes, resource\nfrom lineward.daemon import allocator\nallocator.keep_freed()\n"
        "c = ctypes.CDLL(None)\nc.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    block = c.malloc(1 << 26)\n    ctypes.memset(block, 1, 1 << 26)\n    c.free(block)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), faults())\n"
    )
    first, again = numbers(source)
    assert first > 1000
    assert again < 100
