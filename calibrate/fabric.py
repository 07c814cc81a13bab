"""How the GPUs of a device are linked, from published figures: what the cost model of collectives starts from."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

Generation = Literal["ampere", "hopper", "blackwell"]


@dataclass(frozen=True)
class Bridge:
    """The way that some GPUs of a node without NVLink share to all others: `bandwidth` bytes/s each way.

    NCCL lets GPUs reach each other only below a host bridge, and copies through host memory beyond (src/graph/paths.cc:
    `ncclTopoCheckP2p`); between two GPUs of an AMD host it always lets them, so two share nothing. `peers`: whether
    GPUs of one bridge reach each other without it, by a PCIe switch.
    """

    gpus: int
    bandwidth: float
    peers: bool

    def ring(self, ranks: int) -> float:
        """Bytes/s of one hop of a ring that visits the bridges one after the other."""
        if self.peers:
            return self.bandwidth if ranks > self.gpus else inf
        return self.bandwidth / min(ranks, self.gpus)

    def passing(self, ranks: int) -> float:
        """How many GPUs' all-to-all passes it: of each the share that is not for itself, or not for its peers."""
        sharing = min(ranks, self.gpus)
        return sharing * (1 - (sharing if self.peers else 1) / ranks)


@dataclass(frozen=True)
class Fabric:
    """`bandwidth`: bytes/s that one GPU achieves to the others of its node, one way; `network`: to other nodes.

    `generation` picks NCCL's constants; `switch`: whether the links meet in a switch that can reduce (NVLink SHARP);
    `bridge`: what more than two GPUs of a node share, None: nothing.
    """

    bandwidth: float
    nvlink: bool
    generation: Generation
    source: str
    switch: bool = False
    gpus_per_node: int = 8
    network: float = 50e9
    bridge: Bridge | None = None

    def nodes(self, ranks: int) -> int:
        return -(-ranks // self.gpus_per_node)

    def bus(self, ranks: int) -> float:
        """Bytes/s through one GPU on the narrowest part of the way around all ranks, whose nodes use all their NICs."""
        nodes = self.nodes(ranks)
        bridge = self.shared(ranks)
        own = self.bandwidth if bridge is None else min(self.bandwidth, bridge.ring(-(-ranks // nodes)))
        return own if nodes == 1 else min(own, ranks / nodes * self.network)

    def shared(self, ranks: int) -> Bridge | None:
        """The bridge, where so many ranks have to pass it."""
        return self.bridge if ranks > 2 else None


# NCCL takes 20.0, 20.6 and 40.1 of the 25, 25 and 50 GB/s of an NVLink of generation 3, 4 and 5, and 12 of the 15.75 of
# PCIe 3 x16 and so of each later generation twice (src/graph/topo.h); links a GPU and NIC rates by the makers' sheets.
# How a host joins its GPUs is no property of the device. The two bridges are those by which the bundled tables are
# explained: one PCIe 4 x16 for all (L40S), and pairs on a switch, each with NCCL's 32 GB/s of a link between AMD
# processors of the fifth generation (RTX PRO 6000). For the RTX 4090, whose driver allows no peers, nobody measured.
_ONE_UPLINK = Bridge(8, 24e9, peers=False)
_PAIRS = Bridge(2, 32e9, peers=True)
_NCCL = "NCCL's figure of an NVLink (src/graph/topo.h) × {} links of a GPU, network {:g} Gbit/s a GPU"
_PCIE = "NCCL's figure of PCIe {} x16 (src/graph/topo.h), network {:g} Gbit/s a GPU, {}"
_ONE = "more than two GPUs of a node sharing one such link"
_TWO = "more than two GPUs of a node sharing 32 GB/s a pair"

FABRICS = {
    "a100-sxm-80gb": Fabric(12 * 20.0e9, True, "ampere", _NCCL.format(12, 200), network=25e9),
    "h100-sxm-80gb": Fabric(18 * 20.6e9, True, "hopper", _NCCL.format(18, 400), switch=True),
    "h200-sxm-141gb": Fabric(18 * 20.6e9, True, "hopper", _NCCL.format(18, 400), switch=True),
    "l40s": Fabric(24e9, False, "ampere", _PCIE.format(4, 200, _ONE), network=25e9, bridge=_ONE_UPLINK),
    "rtx-4090": Fabric(24e9, False, "ampere", _PCIE.format(4, 100, _ONE), network=12.5e9, bridge=_ONE_UPLINK),
    "rtx-pro-6000": Fabric(48e9, False, "blackwell", _PCIE.format(5, 400, _TWO), bridge=_PAIRS),
}
