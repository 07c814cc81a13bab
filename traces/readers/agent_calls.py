"""The calls of a recorded agent session, and what each of them waits for when the session is run again.

A main agent's calls follow each other. A sub-agent's calls run beside it: the first waits for the call before the
sub-agent's entry, and the call after that entry waits for the sub-agent's last, unless the sub-agent was launched in
the background. Where a call waits for several, its parent is the one that in the recording ended last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl


@dataclass(frozen=True)
class Call:
    """One recorded call. Times are seconds on the clock of its session; None: not recorded."""

    row: int  # in the source, over all sessions
    start: float
    api_time: float | None  # from its start to its end
    think_time: float | None  # from the end of the call before it to its start
    ttft: float | None
    prompt_tokens: int
    output_tokens: int
    model: str | None
    blocks: pl.Series  # hash ids as the source has them

    @property
    def end(self) -> float:
        """Its end, or where that was not recorded its start, the earliest that it can be."""
        return self.start + (self.api_time or 0.0)

    @property
    def failed(self) -> bool:
        return self.output_tokens == 0 or self.prompt_tokens == 0


@dataclass(frozen=True)
class SubAgent:
    """A sub-agent's calls, at the place where the main agent's list has it."""

    calls: tuple[Call | SubAgent, ...]
    in_background: bool  # the main agent did not wait for it


@dataclass(frozen=True)
class Session:
    name: str
    block_tokens: int
    own_ids: bool  # its hash ids mean nothing in another session
    calls: tuple[Call | SubAgent, ...]


@dataclass(frozen=True)
class Linked:
    """A call, the row it waits for (None: it is sent at its start) and how long after that one's end it is sent."""

    call: Call
    parent: int | None
    think_time: float | None


@dataclass
class Links:
    """The linked calls of sessions, in the order of the source, and what was found on the way."""

    calls: list[Linked] = field(default_factory=list)
    sub_agents: int = 0
    in_background: int = 0
    overlaps: int = 0  # calls that in the recording began before their parent had ended
    unknown_think_times: int = 0

    def follow(self, entries: Iterable[Call | SubAgent], launched_by: Call | None = None) -> Call | None:
        """Link the calls of one agent and of its sub-agents; returns its last call that did not fail."""
        before, recorded = launched_by, None
        joined: list[Call] = []
        for entry in entries:
            if isinstance(entry, SubAgent):
                self.sub_agents += 1
                self.in_background += entry.in_background
                last = self.follow(entry.calls, before)
                if last is not None and not entry.in_background:
                    joined.append(last)
                continue
            candidates = [call for call in (before, *joined) if call is not None]
            parent = max(candidates, key=lambda call: call.end, default=None)
            # The recorded think time speaks of the call before it in the list, whatever became of that one.
            said = entry.think_time if parent is not None and parent is recorded else None
            self.calls.append(
                Linked(entry, None if parent is None else parent.row, self._think_time(entry, parent, said))
            )
            recorded = entry
            if not entry.failed:
                before, joined = entry, []
        return before if before is not launched_by else None

    def _think_time(self, call: Call, parent: Call | None, said: float | None) -> float | None:
        if parent is None:
            return None
        self.overlaps += call.start < parent.start + (parent.api_time or 0.0) - 1.0  # starts are whole seconds
        if said is not None:
            return said
        if parent.api_time is None:
            self.unknown_think_times += 1
            return None
        return max(call.start - parent.end, 0.0)
