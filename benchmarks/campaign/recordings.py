"""Part 5: what PyTorch's allocator does while requests are served: with lengths as they come, with lengths in buckets,
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


_AT_ONCE = 2  # as many engines as a GPU of 80 GB holds; when the events happen is not what they are recorded for


def run(work: Work) -> None:
    # Where nothing is recorded, one of them shows that it would be.
    kinds = list(KINDS) if work.on_gpu else ["expandable"]
    missing = [name for name in kinds if not (work.out / "recordings" / name / "recording.json").is_file()]
    for some in _in_groups(missing, _AT_ONCE):
        work.need(12, f"the recording {some[0]}")
        _record(work, some)
    if not work.on_gpu:
        raise Skip("needs cuda; the requests that are recorded there were served")
    for name in kinds:
        recording = Recording.load(work.out / "recordings" / name)
        counts = recording.events["action"].value_counts(sort=True)
        work.found[name] = {"events": dict(counts.iter_rows()), "ledger": recording.facts["ledger"]}


def _in_groups(names: list[str], size: int) -> list[list[str]]:
    return [names[first : first + size] for first in range(0, len(names), size)]


def _record(work: Work, kinds: list[str]) -> None:
    children = [_begin(work, kind) for kind in kinds]
    try:
        codes = [child.wait() for child in children]
    except KeyboardInterrupt:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
        raise
    for kind, code in zip(kinds, codes, strict=True):
        if code:
            raise RuntimeError(f"recording {kind}: its process ended with code {code}")


def _begin(work: Work, kind: str) -> subprocess.Popen[bytes]:
    # Both names of the variable: which of them wins depends on the version.
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if KINDS[kind].settings:
        environment |= dict.fromkeys(names, KINDS[kind].settings)
    command = [sys.executable, "-P", "-m", "campaign.serve_recorded", kind, str(work.out / "recordings"), work.device]
    return subprocess.Popen(command, env=environment)
