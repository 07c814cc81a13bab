"""The machine that a benchmark runs on: its name, and how busy it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    name = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} × {name.partition(':')[2].strip() or platform.machine()}"


def busy_seconds() -> float:
    """CPU time that the whole machine has been busy since boot, idle and waiting for disks left out (proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
