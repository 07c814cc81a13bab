"""Part 4: the watts that the GPU draws: idle, prefilling, and decoding by batch; kept in the profile as a table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from statistics import mean, median, quantiles
from typing import Any

import polars as pl

from calibrate.microbench.grid import StepShape
from calibrate.microbench.workbench import Workbench
from calibrate.model import load_model
from campaign.machine import gpu_handle
from campaign.profile import add_power, grid_of
from campaign.work import BLOCK_SIZE, Skip, Work

# State, sequences → the step that is repeated meanwhile; none: idle.
STATES: dict[tuple[str, int], StepShape | None] = {
    ("idle", 0): None,
    ("prefill", 1): StepShape([(2048, 0)], []),
    **{("decode", n): StepShape([], [1024] * n) for n in (1, 8, 32, 128)},
}
_SETTLE, _WATCH = 1.3, 1.5  # seconds: NVML's figure lags behind by about one
_INTERVAL = 0.02


def run(work: Work) -> None:
    handle = gpu_handle() if work.on_gpu else None
    if handle is None:
        raise Skip("needs NVML (package nvidia-ml-py) and an NVIDIA GPU" if work.on_gpu else "needs cuda")
    read = meter(handle)
    bench = Workbench(load_model(work.model), grid_of(work), work.device, BLOCK_SIZE, 0)
    rows = []
    for (state, sequences), shape in STATES.items():
        work.need(2 * (_SETTLE + _WATCH), f"the power of {state} × {sequences}")
        rows.append({"state": state, "sequences": sequences} | watch(stepper(bench, shape), read, _SETTLE, _WATCH))
    pl.DataFrame(rows).write_parquet(work.power)
    add_power(work)
    work.found["states"] = rows


def meter(handle: Any) -> Callable[[], float]:
    """A function that reads the watts of this moment; the GPU's own average of a second where it says no other."""
    import pynvml

    def instant() -> float:
        value = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) / 1e3

    try:
        instant()
    except (pynvml.NVMLError, AttributeError):
        return lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3
    return instant


def stepper(bench: Workbench, shape: StepShape | None) -> Callable[[], object]:
    """One step of a shape; of none, a moment of rest."""
    if shape is None:
        return lambda: time.sleep(0.1)
    batch = bench.batch(shape)
    return lambda: bench.decoder.step(bench.fresh_tokens(batch))


def watch(step: Callable[[], object], read: Callable[[], float], settle: float, seconds: float) -> dict[str, float]:
    """Repeat a step, for `settle` seconds unwatched and then for `seconds` watched.

    Returns the median seconds of a step; mean, 10th and 90th percentile of the watts; and the number of samples.
    """
    begin = time.perf_counter()
    while time.perf_counter() - begin < settle:
        step()
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while True:
            samples.append(read())
            if stop.wait(_INTERVAL):
                return

    watcher = threading.Thread(target=sample)
    watcher.start()
    times: list[float] = []
    try:
        begin = time.perf_counter()
        while not times or time.perf_counter() - begin < seconds:
            before = time.perf_counter()
            step()
            times.append(time.perf_counter() - before)
    finally:
        stop.set()
        watcher.join()
    tenths = quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else [samples[0]] * 9
    return {
        "seconds": median(times),
        "watts": mean(samples),
        "watts_p10": tenths[0],
        "watts_p90": tenths[-1],
        "samples": len(samples),
    }
