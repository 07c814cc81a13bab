"""Transfers end when max-min fair shares would have carried them, and no link carries more than it can."""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.fleet.links.network import Network

LINKS = 4
PATHS = st.lists(st.integers(0, LINKS - 1), min_size=1, max_size=3, unique=True).map(tuple)
# (quarter seconds, links, bytes)
TRANSFERS = st.lists(st.tuples(st.integers(0, 40), PATHS, st.integers(1, 100)), min_size=1, max_size=15)
BANDWIDTHS = st.lists(st.integers(1, 50), min_size=LINKS, max_size=LINKS)
# (quarter seconds, link, halves of its bandwidth)
CHANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, LINKS - 1), st.integers(0, 3)), max_size=4)

Transfers = Sequence[tuple[int, tuple[int, ...], int]]


def filled(paths: dict[int, tuple[int, ...]], capacity: Sequence[Fraction]) -> dict[int, Fraction]:
    """Progressive filling as it is told: raise all rates alike, stop those on a full link, go on with the others."""
    rates = dict.fromkeys(paths, Fraction(0))
    growing = set(paths)
    while growing:
        room = []
        for link, limit in enumerate(capacity):
            count = sum(link in paths[one] for one in growing)
            if count:
                used = sum((rates[one] for one in paths if link in paths[one]), Fraction(0))
                room.append((limit - used) / count)
        step = min(room)
        for one in growing:
            rates[one] += step
        for link, limit in enumerate(capacity):
            if sum((rates[one] for one in paths if link in paths[one]), Fraction(0)) == limit:
                growing -= {one for one in growing if link in paths[one]}
    return rates


def fluid(transfers: Transfers, bandwidths: Sequence[int], changes: Sequence[tuple[int, int, int]]) -> list[float]:
    """When each transfer ends (inf: never), in exact fractions, from one change to the next."""
    left = {index: Fraction(size) for index, (_, _, size) in enumerate(transfers)}
    capacity = [Fraction(bandwidth) for bandwidth in bandwidths]
    ahead = sorted(changes, key=lambda change: change[0])
    ends = [inf] * len(transfers)
    now = Fraction(0)
    while left:
        while ahead and Fraction(ahead[0][0], 4) <= now:
            _, link, halves = ahead.pop(0)
            capacity[link] = Fraction(bandwidths[link] * halves, 2)
        begun = {index: transfers[index][1] for index in left if Fraction(transfers[index][0], 4) <= now}
        rates = filled(begun, capacity)
        nexts = [Fraction(transfers[index][0], 4) for index in left if index not in begun]
        nexts += [now + left[index] / rate for index, rate in rates.items() if rate]
        nexts += [Fraction(quarters, 4) for quarters, _, _ in ahead]
        if not nexts:
            break
        then = min(nexts)
        for index, rate in rates.items():
            left[index] -= (then - now) * rate
            if not left[index]:
                ends[index] = float(then)
                del left[index]
        now = then
    return ends


class Run:
    """The transfers over a network; `carried` are the bytes of each link."""

    def __init__(
        self,
        transfers: Transfers,
        bandwidths: Sequence[float],
        changes: Sequence[tuple[int, int, int]] = (),
        latency: float = 0.0,
        cancels: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.links = [self.network.link(str(index), each, latency) for index, each in enumerate(bandwidths)]
        self.ends = [inf] * len(transfers)
        under_way = {}

        def begin(index: int) -> None:
            _, path, size = transfers[index]
            path_links = [self.links[link] for link in path]
            under_way[index] = self.network.transfer(path_links, size, lambda: self.end(index))

        for quarters, link, halves in sorted(changes, key=lambda change: change[0]):
            self.at(quarters, lambda link=link, halves=halves: self.links[link].degrade(halves / 2))
        for index, (quarters, _, _) in enumerate(transfers):
            self.at(quarters, lambda index=index: begin(index))
        for quarters, index in cancels:
            self.at(quarters, lambda index=index: index in under_way and self.network.cancel(under_way[index]))
        self.clock.run_out()
        self.carried = [self.network.carried(link) for link in self.links]

    def at(self, quarters: int, what) -> None:
        self.clock.at(quarters / 4, NORMAL).callbacks = [lambda _: what()]

    def end(self, index: int) -> None:
        assert self.ends[index] == inf, "told twice"
        self.ends[index] = self.clock.now


@settings(max_examples=200, deadline=None)
@given(TRANSFERS, BANDWIDTHS, CHANGES)
def test_ends_are_those_of_progressive_filling(
    transfers: Transfers, bandwidths: list[int], changes: list[tuple[int, int, int]]
) -> None:
    run = Run(transfers, bandwidths, changes)
    assert run.ends == pytest.approx(fluid(transfers, bandwidths, changes), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(TRANSFERS, BANDWIDTHS, CHANGES)
def test_bytes_are_conserved_and_no_link_is_over_capacity(
    transfers: Transfers, bandwidths: list[int], changes: list[tuple[int, int, int]]
) -> None:
    run = Run(transfers, bandwidths, changes)
    sent, most = defaultdict(float), defaultdict(float)
    for (_, path, size), end in zip(transfers, run.ends, strict=True):
        for link in path:
            sent[link] += size if end < inf else 0.0
            most[link] += size
    last = max((end for end in run.ends if end < inf), default=0.0)
    for link, carried in enumerate(run.carried):
        assert sent[link] * (1 - 1e-9) <= carried <= most[link] * (1 + 1e-9)
        highest = max([1.0, *(halves / 2 for _, on, halves in changes if on == link)])
        if inf not in run.ends:
            assert carried <= bandwidths[link] * highest * last * (1 + 1e-9)


@given(PATHS, BANDWIDTHS, st.integers(1, 10**9), st.integers(0, 40), st.floats(0, 1))
def test_a_transfer_alone_takes_its_size_over_the_least_bandwidth_and_the_latencies(
    path: tuple[int, ...], bandwidths: list[int], size: int, quarters: int, latency: float
) -> None:
    (end,) = Run([(quarters, path, size)], bandwidths, latency=latency).ends
    alone = size / min(bandwidths[link] for link in path)
    assert end == pytest.approx(quarters / 4 + alone + len(path) * latency, rel=1e-12)


@given(TRANSFERS, BANDWIDTHS, CHANGES)
@settings(max_examples=50, deadline=None)
def test_the_same_transfers_give_the_same_bits(
    transfers: Transfers, bandwidths: list[int], changes: list[tuple[int, int, int]]
) -> None:
    assert Run(transfers, bandwidths, changes).ends == Run(transfers, bandwidths, changes).ends


@given(TRANSFERS, BANDWIDTHS, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 14)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_cancelled_transfer_never_ends_and_slows_nobody(
    transfers: Transfers, bandwidths: list[int], cancels: list[tuple[int, int]]
) -> None:
    plain = Run(transfers, bandwidths, latency=0.1)
    run = Run(transfers, bandwidths, latency=0.1, cancels=cancels)
    cancelled = {index for _, index in cancels}
    for index, end in enumerate(run.ends):
        assert end < inf or index in cancelled
    if len({path for _, path, _ in transfers}) == 1:  # on one path nobody can be the slower for it
        assert all(end <= before * (1 + 1e-12) for end, before in zip(run.ends, plain.ends, strict=True) if end < inf)


def test_a_transfer_over_unlimited_links_takes_their_latency() -> None:
    assert Run([(4, (0, 1), 10**12)], [inf, inf], latency=0.25).ends == [1.5]


def test_a_link_that_stands_still_goes_on_where_it_stopped() -> None:
    run = Run([(0, (0,), 40)], [10], [(4, 0, 0), (12, 0, 2)])
    assert run.ends == [6.0]


def test_nobody_waits_for_an_end_that_was_put_forward() -> None:
    clock = Clock()
    network, quiet = Network(clock), []
    link = network.link("one", 10.0, 5.0)
    network.transfer((link,), 100, lambda: quiet.append(clock.quiet))
    link.degrade(1e-3)
    link.degrade(1.0)
    clock.run_out()
    assert quiet == [True]


@pytest.mark.parametrize("time", [2.0, 12.0])
def test_nobody_waits_for_a_cancelled_transfer(time: float) -> None:
    """While it sends, and while its last byte is on its way."""
    clock = Clock()
    network, quiet = Network(clock), []
    transfer = network.transfer((network.link("one", 10.0, 5.0),), 100, lambda: pytest.fail("it was cancelled"))

    def cancel() -> None:
        network.cancel(transfer)
        quiet.append(clock.quiet)

    clock.at(time, NORMAL).callbacks = [lambda _: cancel()]
    clock.run_out()
    assert quiet == [True]


def test_a_port_counts_its_latency_once() -> None:
    clock = Clock()
    network = Network(clock)
    one, other = network.port("one", 10.0, 0.5), network.port("other", 5.0, 0.5)
    ends: list[float] = []
    network.transfer((one.out, other.into), 20, lambda: ends.append(clock.now))
    network.transfer((other.out, one.into), 20, lambda: ends.append(clock.now))
    clock.run_out()
    assert ends == [4.5, 4.5]


def test_wrong_figures_are_refused() -> None:
    network = Network(Clock())
    with pytest.raises(ValueError, match="link slow: 0 bytes/s"):
        network.link("slow", 0)
    with pytest.raises(ValueError, match="factor is -1"):
        network.link("good", 1).degrade(-1)
