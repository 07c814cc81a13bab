"""Machines with GPUs, on which replicas find room: provisioned when none has any, given back when nobody uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from simpy.events import URGENT

from sim.engine.clock import Clock
from sim.fleet.cold_start_settings import NodeSettings
from sim.fleet.links.network import Link


@dataclass(eq=False, slots=True)
class Node:
    """`disk` and `pull` are its own links. `image`: whether it is there, None: it is on its way."""

    number: int
    free: int  # GPUs
    ready: bool = False
    image: bool | None = False
    disk: Link | None = None
    pull: Link | None = None
    coming: list[Callable[[], None]] = field(default_factory=list)  # who waits for the node
    pulling: list[Callable[[], None]] = field(default_factory=list)  # who waits for the image
    used: int = 0  # how often somebody has come


class Nodes:
    """Whoever asks first is served first: by the fullest node with room, of equals by the one that was there first."""

    def __init__(self, clock: Clock, settings: NodeSettings | None, gpus: int, make: Callable[[Node], None]) -> None:
        """`gpus`: of a replica. `make` gives a new node what it has. Without settings every replica has its own."""
        self._clock = clock
        self._settings = settings
        self._gpus = gpus
        self._make = make
        self._nodes: dict[int, Node] = {}
        self._made = 0
        self._of: dict[int, Node] = {}  # replica → where it is
        self._queue: deque[tuple[int, float, Callable[[Node], None]]] = deque()
        if settings is not None:
            for _ in range(settings.ready):
                self._new().ready = True

    def seat(self, replica: int) -> Node:
        """A replica that is there from the beginning, on a node that is there with its image."""
        node = self._with_room() or self._new()
        node.ready, node.image = True, True
        self._take(node, replica)
        return node

    def place(self, replica: int, provision: float, placed: Callable[[Node], None]) -> None:
        """Find room for a replica; `placed` is told the node when that is there, perhaps at once. A new one takes
        `provision` seconds."""
        self._queue.append((replica, provision, placed))
        self._serve()

    def leave(self, replica: int) -> None:
        """It is there no more, or does not wait any longer."""
        node = self._of.pop(replica, None)
        if node is None:
            self._queue = deque(one for one in self._queue if one[0] != replica)
            return
        node.free += self._gpus
        if self._settings is None:
            del self._nodes[node.number]
        elif node.free == self._settings.gpus:
            self._give_back_later(node, self._settings.keep)
        self._serve()

    def move(self, old: int, new: int) -> Node:
        """A replica goes on under another number."""
        node = self._of[new] = self._of.pop(old)
        return node

    def _serve(self) -> None:
        while self._queue:
            node = self._with_room()
            replica, provision, placed = self._queue[0]
            if node is None:
                if not self._may_grow():
                    return
                node = self._new()
                self._clock.at(self._clock.now + provision, URGENT).callbacks = [lambda _, node=node: self._came(node)]
            self._queue.popleft()
            self._take(node, replica)
            if node.ready:
                placed(node)
            else:
                node.coming.append(partial(placed, node))

    def _came(self, node: Node) -> None:
        node.ready = True
        coming, node.coming = node.coming, []
        for placed in coming:
            placed()

    def _with_room(self) -> Node | None:
        if self._settings is None:
            return None
        fitting = [node for node in self._nodes.values() if node.free >= self._gpus]
        return min(fitting, key=lambda node: (node.free, node.number)) if fitting else None

    def _may_grow(self) -> bool:
        return self._settings is None or self._settings.max is None or len(self._nodes) < self._settings.max

    def _new(self) -> Node:
        node = Node(self._made, self._gpus if self._settings is None else self._settings.gpus)
        self._made += 1
        self._make(node)
        self._nodes[node.number] = node
        return node

    def _take(self, node: Node, replica: int) -> None:
        node.free -= self._gpus
        node.used += 1
        self._of[replica] = node

    def _give_back_later(self, node: Node, keep: float) -> None:
        used = node.used

        def look(_: object) -> None:
            if node.used == used:
                del self._nodes[node.number]
                self._serve()

        self._clock.watch(self._clock.now + keep, URGENT).callbacks.append(look)
