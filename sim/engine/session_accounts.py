"""What each session held of one engine's KV cache, and lost of it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from sim.engine.request import Request
from sim.results.tables import SESSIONS


class Account:
    """One session; the columns of `sim.results.tables.SESSIONS` say what each number is."""

    __slots__ = ("evictions", "first", "idle_block_seconds", "last", "missed_tokens", "peak_blocks", "turns")

    def __init__(self, first: float) -> None:
        self.first = first
        self.last = first
        self.turns = 0
        self.peak_blocks = 0
        self.idle_block_seconds = 0.0
        self.evictions = 0
        self.missed_tokens = 0


class SessionAccounts(dict[str, Account]):
    """Session → its account, in the order in which they were first answered.

    A session's turns are expected to follow one another. Where they overlap, `peak_blocks` is that of the largest.
    """

    def answered(self, request: Request, now: float) -> None:
        """A turn of a session ended, and still has its blocks."""
        session, first = request.session, request.first_scheduled
        assert session is not None and first is not None
        account = self.get(session)
        if account is None:
            account = self[session] = Account(first)
        account.first = min(account.first, first)
        account.last = now
        account.turns += 1
        account.peak_blocks = max(account.peak_blocks, request.holding.blocks)
        account.missed_tokens += request.missed_tokens

    def idled(self, session: str, blocks: int, seconds: float) -> None:
        """Blocks were kept for it so long, between two turns or after the last."""
        self[session].idle_block_seconds += blocks * seconds

    def evicted(self, session: str) -> None:
        self[session].evictions += 1


def sessions_table(accounts: Mapping[int, SessionAccounts]) -> pl.DataFrame:
    """The columns of `sim.results.tables.SESSIONS`, by replica and first answer; a session that went to several
    replicas has a row for each."""
    rows = [
        (session, replica, *(getattr(account, name) for name in list(SESSIONS)[2:]))
        for replica, of_replica in accounts.items()
        for session, account in of_replica.items()
    ]
    return pl.DataFrame(rows, schema=SESSIONS, orient="row")
