"""Record what PyTorch's CUDA allocator does while something runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ground.errors import UserError
from validate.allocator.ledger import check
from validate.allocator.recording import Recording, reduce

# An entry is a Python dictionary when it is read, of about a kilobyte.
MAX_EVENTS = 2_000_000


def record(run: Callable[[], object], facts: dict[str, Any]) -> Recording:
    """Run something on the current CUDA device with the allocator's history on, and reduce what it did.

    What was allocated before is in the recording's first layout. `facts` are kept with it, and beside them `ledger`:
    that it closes, or why it does not. What was recorded is kept either way.

    Raises:
        UserError: more events than `MAX_EVENTS`.
    """
    torch.cuda.synchronize()
    # No stack traces: they are a thousand times the rest, and a replay has no use for them.
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=MAX_EVENTS)
    try:
        first = torch.cuda.memory._snapshot()
        statistics = {"before": _integers(torch.cuda.memory_stats())}
        run()
        torch.cuda.synchronize()
        statistics["after"] = _integers(torch.cuda.memory_stats())
        last = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(None)
    recording = reduce(first, last, device=torch.cuda.current_device())
    recording.statistics = statistics
    try:
        check(recording.events, recording.layout)
        facts["ledger"] = "closes"
    except UserError as error:
        facts["ledger"] = error.message
    recording.facts = facts
    return recording


def _integers(statistics: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in statistics.items() if isinstance(value, int)}
