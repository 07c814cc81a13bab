"""Host and device one after the other, or at the same time."""

from __future__ import annotations

from gallery import Exhibit
from symptom import Row, simulated, symptom

ASYNC = {"engine.async_scheduling": True}
# The front end in processes of its own leaves a quarter of the host's work in the process that launches the kernels.
APART = ASYNC | {"engine.host_work.per_running": 0.00078 / 4}

TEXT = """\
97 clients in a closed loop. The host's work for a request was calibrated on 128 ms; 760 requests/s follow from it
by Little's law. Scheduling one step ahead hides the shorter of host and device behind the longer, so two stages
gain at most a factor of two; 43 ms is a factor of three. It needs the host's work itself to leave the engine's
process, as vLLM's API server processes do.
"""


def run() -> Exhibit:
    figures = []
    for settings in ({}, ASYNC, APART):
        metrics = simulated("pipeline", settings).metrics
        figures.append((1e3 * metrics["e2e"]["mean"], metrics["throughput"]["requests"]))
    (sync, sync_rate), (overlapped, overlapped_rate), (apart, apart_rate) = figures
    return symptom(
        "Synchronous against asynchronous pipeline",
        TEXT,
        [
            Row("mean latency", "128 ms → 43 ms", f"{sync:.0f} ms", f"{overlapped:.0f} ms overlapped; {apart:.0f} ms "
                "with the front end in processes of its own"),
            Row("requests/s", "760 → 2,150", f"{sync_rate:,.0f}", f"{overlapped_rate:,.0f}; {apart_rate:,.0f}"),
        ],
    )  # fmt: skip
