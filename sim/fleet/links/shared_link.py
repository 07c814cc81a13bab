"""A link that the copies under way share equally: a network of one link."""

from collections.abc import Callable

from sim.engine.clock import Clock
from sim.fleet.links.network import Network


class SharedLink:
    def __init__(self, clock: Clock, bandwidth: float) -> None:
        """`bandwidth`: bytes/s; `inf`: copies take no time."""
        self._network = Network(clock)
        self._path = (self._network.link("weights", bandwidth),)

    def copy(self, size: int, done: Callable[[], None]) -> None:
        """Begin to copy `size` bytes; `done` is called when that has ended, perhaps at once."""
        self._network.transfer(self._path, size, done)
