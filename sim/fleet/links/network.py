"""Links between devices and places as shared resources: transfers over one or several links, with contention.

Rates are max-min fair (Bertsekas and Gallager, Data Networks, section 6.5.2): all transfers grow alike until a link is
full; those on it stay, the others grow on. Between two changes every rate is constant, so ends are exact and time is
not sliced. Transfers over the same path always have the same rate: each path counts the bytes that one transfer got,
and a transfer ends when that count has grown by its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import NamedTuple

from simpy.events import URGENT

from sim.engine.clock import Clock, Instant
from sim.fleet.links.fair_share import NOTHING, Share, fair_shares


class Link:
    """One direction of a connection. Only a `Network` makes them."""

    def __init__(self, network: Network, name: str, bandwidth: float, latency: float) -> None:
        self.name = name
        self.bandwidth = bandwidth  # bytes/s, as built
        self.latency = latency
        self.factor = 1.0
        self.number = 0  # of the links of its network
        self.paths: dict[_Path, None] = {}  # that lead over it and have transfers
        self.carried = 0.0  # bytes of it, up to the last change of each path
        self._network = network

    @property
    def capacity(self) -> float:
        """Bytes/s now."""
        return self.bandwidth * self.factor

    def degrade(self, factor: float) -> None:
        """From now on it has `factor` of its built bandwidth: 1 is whole again, 0 stands still.

        Raises:
            ValueError: a negative factor.
        """
        if not 0 <= factor < inf:
            raise ValueError(f"link {self.name}: factor is {factor}; expected 0 or more")
        self.factor = factor
        self._network.changed((self,))


class Port(NamedTuple):
    """A device's two directions. From a to b lead `(a.out, b.into)`; what lies between is not a bottleneck."""

    out: Link
    into: Link


@dataclass(eq=False, slots=True)
class Transfer:
    """Bytes under way. `done` is called when the last one has arrived."""

    done: Callable[[], None]
    latency: float
    path: _Path | None = None  # while it is sending
    arrival: Instant | None = None  # once it has sent


@dataclass(eq=False, slots=True)
class _Path:
    links: tuple[Link, ...]
    numbers: tuple[int, ...]  # of its links
    ends: list[tuple[float, int, Transfer]] = field(default_factory=list)  # heap of (count at its end, order, which)
    count: float = 0.0  # bytes that each transfer got since the path was last idle
    counted_at: float = 0.0
    share: Share = NOTHING
    next: Instant | None = None  # end of the transfer that ends first
    next_at: float = inf


class Network:
    """Links, and what is under way on them. Transfers over no link, or only over unlimited ones, send at once."""

    def __init__(self, clock: Clock) -> None:
        self.links: list[Link] = []
        self._clock = clock
        self._paths: dict[tuple[Link, ...], _Path] = {}
        self._order = count()

    def link(self, name: str, bandwidth: float, latency: float = 0.0) -> Link:
        """One more link, of `bandwidth` bytes/s (`inf`: unlimited) and `latency` seconds.

        Raises:
            ValueError: no bandwidth, or a negative latency.
        """
        if not bandwidth > 0 or not latency >= 0:
            raise ValueError(f"link {name}: {bandwidth} bytes/s and {latency} s; expected more than 0 and 0 or more")
        link = Link(self, name, bandwidth, latency)
        link.number = len(self.links)
        self.links.append(link)
        return link

    def port(self, name: str, bandwidth: float, latency: float = 0.0) -> Port:
        """Both directions of a device's connection; the latency is that from port to port, counted once."""
        return Port(self.link(f"{name} out", bandwidth, latency), self.link(f"{name} in", bandwidth))

    def transfer(self, path: Sequence[Link], size: int, done: Callable[[], None]) -> Transfer:
        """Begin to send `size` bytes over the links of `path`, all at once (cut through, not stored between them).

        They share the links until the last byte is sent; `done` is called the sum of the latencies after that,
        perhaps before this returns. Alone it takes size / the least bandwidth + that sum.
        """
        transfer = Transfer(done, sum(link.latency for link in path))
        limited = tuple(link for link in dict.fromkeys(path) if link.bandwidth < inf)
        if not limited or not size:
            self._sent(transfer)
            return transfer
        own = self._paths.get(limited)
        if own is None:
            own = self._paths[limited] = _Path(
                limited, tuple(link.number for link in limited), counted_at=self._clock.now
            )
            for link in limited:
                link.paths[own] = None
        self._count(own)
        heappush(own.ends, (own.count + size, next(self._order), transfer))
        transfer.path = own
        self.changed(limited)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer wherever it is; `done` is not called. One that has arrived is left alone."""
        if transfer.arrival is not None:
            self._clock.abandon(transfer.arrival)
        path, transfer.path = transfer.path, None
        if path is None:
            return
        self._count(path)
        path.ends = [entry for entry in path.ends if entry[2] is not transfer]
        heapify(path.ends)
        self._close_if_idle(path)
        self.changed(path.links)

    def carried(self, link: Link) -> float:
        """Bytes that a link has carried up to now."""
        for path in link.paths:
            self._count(path)
        return link.carried

    def changed(self, links: Sequence[Link]) -> None:
        """Share anew what the transfers use that meet on these links, or on links of such."""
        paths = _connected(links)
        shares = fair_shares(
            [(path.numbers, len(path.ends)) for path in paths],
            {link.number: link.capacity for path in paths for link in path.links},
        )
        for path, share in zip(paths, shares, strict=True):
            if share != path.share:
                self._count(path)
                path.share = share
            self._wait(path)

    def _count(self, path: _Path) -> None:
        """Bring what its transfers got up to now."""
        now = self._clock.now
        if now > path.counted_at and path.ends:
            self._grow(path, min(path.count + path.share.bytes_in(now - path.counted_at), path.ends[0][0]))
        path.counted_at = now

    def _grow(self, path: _Path, count: float) -> None:
        for link in path.links:
            link.carried += (count - path.count) * len(path.ends)
        path.count = count

    def _wait(self, path: _Path) -> None:
        left = max(0.0, path.ends[0][0] - path.count) if path.ends else inf
        end = path.counted_at + path.share.seconds_for(left)
        if end == path.next_at:
            return
        if path.next is not None:
            self._clock.abandon(path.next)
            path.next = None
        path.next_at = end
        if end < inf:
            # Before what arrives at that instant, which then finds what was sent there.
            path.next = self._clock.at(end, URGENT)
            path.next.callbacks = [lambda _: self._ended(path)]

    def _ended(self, path: _Path) -> None:
        """The transfers that come next have sent all."""
        self._grow(path, path.ends[0][0])
        path.counted_at = self._clock.now
        path.next, path.next_at = None, inf
        ended = []
        while path.ends and path.ends[0][0] <= path.count:
            ended.append(heappop(path.ends)[2])
        self._close_if_idle(path)
        for transfer in ended:
            transfer.path = None
        self.changed(path.links)
        for transfer in ended:
            self._sent(transfer)

    def _close_if_idle(self, path: _Path) -> None:
        if path.ends:
            return
        del self._paths[path.links]
        for link in path.links:
            del link.paths[path]
        if path.next is not None:
            self._clock.abandon(path.next)

    def _sent(self, transfer: Transfer) -> None:
        if not transfer.latency:
            transfer.done()
            return
        transfer.arrival = self._clock.at(self._clock.now + transfer.latency, URGENT)
        transfer.arrival.callbacks = [lambda _: transfer.done()]


def _connected(links: Sequence[Link]) -> list[_Path]:
    """The paths over these links, and those that share a link with one of them, and so on."""
    found: dict[_Path, None] = {}
    seen = set(links)
    ahead = list(links)
    while ahead:
        for path in ahead.pop().paths:
            if path in found:
                continue
            found[path] = None
            for link in path.links:
                if link not in seen:
                    seen.add(link)
                    ahead.append(link)
    return list(found)
