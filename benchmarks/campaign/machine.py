"""On what the campaign runs: device, driver, versions; and the clocks, which are recorded and never set."""

from __future__ import annotations

import platform
import threading
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "numpy", "polars", "simpy", "pydantic", "transformers", "nvidia-ml-py")


def facts(device: str) -> dict[str, Any]:
    """Device, memory and versions; of a GPU also its driver, as NVML states it."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {name: known for name in _PACKAGES if (known := _version(name))},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
        handle = gpu_handle()
        if handle is not None:
            import pynvml

            found |= {"driver": pynvml.nvmlSystemGetDriverVersion()}
            found |= {"power_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3}
    return found


class ClockWatch:
    """Looks at the GPU's clocks now and then while the `with` block runs; `summary` is None where there is no NVML."""

    def __init__(self, device: str, *, interval: float = 0.5) -> None:
        self._handle = gpu_handle() if device == "cuda" else None
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._seen: list[dict[str, float]] = []

    def __enter__(self) -> ClockWatch:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._handle is not None:
            self._thread.join()

    @property
    def summary(self) -> dict[str, dict[str, float]] | None:
        """MHz, degrees and watts: the least, the median and the most that was seen."""
        if not self._seen:
            return None
        series = {name: [one[name] for one in self._seen] for name in self._seen[0]}
        return {
            name: {"min": min(values), "median": median(values), "max": max(values)} for name, values in series.items()
        }

    def _look(self) -> None:
        while True:
            self._seen.append(clocks(self._handle))
            if self._stop.wait(self._interval):
                return


def clocks(handle: Any) -> dict[str, float]:
    """MHz, degrees and watts at this moment."""
    import pynvml

    return {
        "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
    }


def gpu_handle() -> Any | None:
    """NVML's handle of torch's current GPU; None where NVML is not to be had, or does not know it."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == 1:
            return pynvml.nvmlDeviceGetHandleByIndex(0)
        # The two number the GPUs of a machine differently.
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except (pynvml.NVMLError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
