"""What a benchmark ran on, as far as it decides the ratios: cores, Python, and how long memory takes to answer."""

from __future__ import annotations

import os
import platform
import random
import time
from pathlib import Path
from typing import Any

__all__ = ["described"]

_OBJECTS = 2_000_000
_ROUNDS = 3


def described() -> dict[str, Any]:
    """Give it as JSON takes it.

    `object_ns` is how long Python takes to add up a number of two million that lie in memory one behind the other, and
    `scattered_ns` how much longer where each lies somewhere else: a fold over many models waits for that at each
    event, and what only reads does not. Both are the best of three rounds.
    """
    object_s, scattered_s = _access_s()
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "system": platform.system(),
        "object_ns": round(object_s * 1e9, 1),
        "scattered_ns": round((scattered_s - object_s) * 1e9, 1),
    }


def _access_s() -> tuple[float, float]:
    in_line = [float(number) for number in range(_OBJECTS)]
    scattered = in_line.copy()
    random.Random(1).shuffle(scattered)
    return _add_s(in_line), _add_s(scattered)


def _add_s(numbers: list[float]) -> float:
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        sum(numbers)
        taken.append(time.perf_counter() - began)
    return min(taken) / len(numbers)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
