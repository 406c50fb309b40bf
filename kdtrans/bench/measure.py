"""What every benchmark measures with: CPU time and resident memory of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process for a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def resident_mb() -> float:
    """Resident memory of this process, 10^6 bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_growth_mb(work: Callable[[], object]) -> float:
    """By how much the peak of resident memory exceeds what is resident before the work, 10^6 bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: importing may have had a higher one
    before = resident_mb()
    work()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e6 - before
