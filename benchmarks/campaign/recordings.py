"""Part 4: what PyTorch's allocator does while requests are served: with lengths as they come, with lengths in buckets,
with expandable segments, and with decode steps captured as CUDA graphs.

Each is recorded in a process of its own, from its first byte on, so that a replay can begin with an empty device.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from campaign.work import Skip, Work
from validate.allocator.recording import Recording


@dataclass(frozen=True)
class Kind:
    """Whether lengths are rounded up to buckets, whether decode graphs are captured, and the allocator's settings."""

    bucketed: bool = False
    graphs: bool = False
    settings: str = ""


KINDS = {
    "dynamic": Kind(),
    "bucketed": Kind(bucketed=True),
    "expandable": Kind(settings="expandable_segments:True"),
    "graphs": Kind(bucketed=True, graphs=True),
}


def run(work: Work) -> None:
    # Where nothing is recorded, one of them shows that it would be.
    kinds = KINDS if work.on_gpu else {"expandable": KINDS["expandable"]}
    for name, kind in kinds.items():
        folder = work.out / "recordings" / name
        if not (folder / "recording.json").is_file():
            work.need(25, f"the recording {name}")
            _record(work, name, kind.settings)
        if work.on_gpu:
            recording = Recording.load(folder)
            counts = recording.events["action"].value_counts(sort=True)
            work.found[name] = {"events": dict(counts.iter_rows()), "ledger": recording.facts["ledger"]}
    if not work.on_gpu:
        raise Skip("needs cuda; the requests that are recorded there were served")


def _record(work: Work, kind: str, settings: str) -> None:
    # Both names of the variable: which of them wins depends on the version.
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if settings:
        environment |= dict.fromkeys(names, settings)
    command = [sys.executable, "-P", "-m", "campaign.serve_recorded", kind, str(work.out / "recordings"), work.device]
    child = subprocess.Popen(command, env=environment)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGKILL)
        child.wait()
        raise
    if code:
        raise RuntimeError(f"recording {kind}: its process ended with code {code}")
