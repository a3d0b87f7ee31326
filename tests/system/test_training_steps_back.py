"""A training from the terminal beside a line: the line goes first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.broker import wait_until
from tests.system.line import LINEWARD, environment


@pytest.mark.parametrize("command", ["train", "dataset check"])
def test_work_on_a_data_set_has_the_lowest_priority(command: str, dataset: Path, tmp_path: Path) -> None:
    """Rule: nothing that takes both cores for minutes competes with the line."""
    arguments = ["train", "--data", dataset, "--out", tmp_path / "x.lward"]
    if command != "train":
        arguments = ["dataset", "check", "--data", dataset]
    running = subprocess.Popen(
        [str(LINEWARD), *map(str, arguments)],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: nice_of(running.pid) == 19, 60, "the lowest priority")
    finally:
        running.kill()
        running.wait()


def nice_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[16])
