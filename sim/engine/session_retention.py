"""KV blocks that stay held for idle sessions, so that the next turn finds them whatever came in between.

What SGLang's sessions, TensorRT-LLM's retention priorities and LMCache's pinning do. After an answer the session keeps
the blocks of that turn. They are given back when the next turn is admitted (it has found them by then), when `ttl`
seconds have passed, when more than `max_sessions` are idle, and when blocks are needed: before a running request is
preempted, and before a waiting one is refused, idle sessions are given up one at a time until there is room or none is
left. What is given back is cached like the blocks of any request that ended, and evicted in its turn.

A session ends its `ttl` at an exact instant, but its blocks come back when the scheduler is next asked or told
something. In between nothing else is freed and nobody waits for blocks (else the session had been given up), so it
makes no difference to anybody when within that time it is noticed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

from pydantic import Field

from ground.spec import Spec
from sim.engine.block_pool import BlockPool, Hit, Holding
from sim.engine.request import Request
from sim.engine.session_accounts import SessionAccounts
from sim.results.recorder import EventRecorder

Reason = Literal["ttl", "pressure", "max_sessions", "restart"]


class SessionRetentionSettings(Spec):
    policy: Literal["lru", "priority"] = Field(
        default="lru", description="whom to give up: the least recently used, of all or of those of least priority"
    )
    ttl: float | None = Field(
        default=None, gt=0, description="seconds after an answer for which its blocks are kept; for ever if not given"
    )
    max_sessions: int | None = Field(default=None, gt=0, description="idle sessions at most; any number if not given")


class GivenUp(NamedTuple):
    """The blocks of an idle session were given back, and not to its next turn."""

    time: float
    session: str
    blocks: int
    reason: Reason


class _Kept(NamedTuple):
    holding: Holding
    since: float
    rank: int  # the lowest is given up first


class SessionRetention:
    """The idle sessions of one engine. Times must not fall from call to call."""

    def __init__(self, settings: SessionRetentionSettings, pool: BlockPool) -> None:
        self.accounts = SessionAccounts()
        self._settings = settings
        self._pool = pool
        self._now = 0.0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by the time of the answer
        self._ranks: dict[int, OrderedDict[str, None]] = {}  # the same, those of each rank
        self._given_up: list[GivenUp] = []

    @property
    def idle(self) -> list[str]:
        """Sessions for which blocks are kept, the least recently used first."""
        return list(self._kept)

    def write_events(self, replica: int, events: EventRecorder) -> None:
        """Who was given up since this was last asked."""
        given_up, self._given_up = self._given_up, []
        for gone in given_up:
            detail = f"{gone.reason}: {gone.session}"
            events.append(gone.time, replica, "session_evicted", amount=gone.blocks, detail=detail)

    def expire(self, now: float) -> None:
        """It is `now`: give up the sessions whose time has passed."""
        self._now = now
        ttl = self._settings.ttl
        if ttl is None:
            return
        while self._kept:
            session, kept = next(iter(self._kept.items()))
            if kept.since + ttl > now:
                return
            self._give_up(session, kept.since + ttl, "ttl")

    def answered(self, request: Request) -> None:
        """A turn of a session ended now. It may have been preempted with its last token under way."""
        self.accounts.answered(request, self._now)
        if request.holding.blocks:
            self.keep(request)

    def keep(self, request: Request) -> None:
        """A turn of a session ended now: its blocks stay held, those of an earlier turn no longer."""
        session = request.session
        assert session is not None
        self.take_over(session)
        rank = request.priority if self._settings.policy == "priority" else 0
        self._kept[session] = _Kept(request.holding, self._now, rank)
        self._ranks.setdefault(rank, OrderedDict())[session] = None
        most = self._settings.max_sessions
        if most is not None and len(self._kept) > most:
            self._give_up(self._victim(), self._now, "max_sessions")

    def take_over(self, session: str) -> None:
        """The next turn of a session holds what it found: give back what was kept."""
        if session in self._kept:
            self._give_back(session, self._now)

    def make_room(self, blocks: int) -> bool:
        """Give up sessions until so many blocks are free; False if there are too few with none left."""
        while self._pool.free < blocks and self._kept:
            self._give_up(self._victim(), self._now, "pressure")
        return self._pool.free >= blocks

    def admit(self, request: Request, hit: Hit, tokens: int, needed: int) -> bool:
        """`BlockPool.admit`, giving up sessions until there is room; the request's own is the last of them. Once it is
        admitted it has taken over what its session had."""
        pool, session = self._pool, request.session
        while not pool.admit(request.holding, hit, tokens, needed):
            if not self._kept:
                return False
            self._give_up(self._victim(spared=session), self._now, "pressure")
        if session is not None:
            self.take_over(session)
        return True

    def drop_all(self, reason: Reason) -> None:
        while self._kept:
            self._give_up(self._victim(), self._now, reason)

    def close(self, end: float) -> None:
        """The run has ended: account for what is still kept, and keep it no longer."""
        self.expire(end)
        while self._kept:
            self._give_back(next(iter(self._kept)), end)

    def _victim(self, spared: str | None = None) -> str:
        """Whom to give up first; one session may be spared unless it is the only one."""
        for rank in sorted(self._ranks):
            for session in self._ranks[rank]:
                if session != spared:
                    return session
        assert spared is not None
        return spared

    def _give_up(self, session: str, time: float, reason: Reason) -> None:
        blocks = self._give_back(session, time)
        self.accounts.evicted(session)
        self._given_up.append(GivenUp(time, session, blocks, reason))

    def _give_back(self, session: str, time: float) -> int:
        """Returns how many blocks it held."""
        kept = self._kept.pop(session)
        of_rank = self._ranks[kept.rank]
        del of_rank[session]
        if not of_rank:
            del self._ranks[kept.rank]
        blocks = kept.holding.blocks
        self.accounts.idled(session, blocks, time - kept.since)
        self._pool.release(kept.holding)
        return blocks
