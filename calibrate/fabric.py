"""How the GPUs of a device are linked, from published figures: what the cost model of collectives starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Generation = Literal["ampere", "hopper", "blackwell"]


@dataclass(frozen=True)
class Fabric:
    """`bandwidth`: bytes/s that one GPU achieves to the others of its node, one way; `network`: to other nodes.

    `generation` picks NCCL's constants; `switch`: whether the links meet in a switch that can reduce (NVLink SHARP).
    """

    bandwidth: float
    nvlink: bool
    generation: Generation
    source: str
    switch: bool = False
    gpus_per_node: int = 8
    network: float = 50e9

    def nodes(self, ranks: int) -> int:
        return -(-ranks // self.gpus_per_node)

    def bus(self, ranks: int) -> float:
        """Bytes/s through one GPU on the narrowest part of the way around all ranks, whose nodes use all their NICs."""
        nodes = self.nodes(ranks)
        return self.bandwidth if nodes == 1 else min(self.bandwidth, ranks / nodes * self.network)


# NCCL takes 20.0, 20.6 and 40.1 of the 25, 25 and 50 GB/s of an NVLink of generation 3, 4 and 5, and 12 of the 15.75 of
# PCIe 3 x16 and so of each later generation twice (src/graph/topo.h); links a GPU and NIC rates by the makers' sheets.
_NCCL = "NCCL's figure of an NVLink (src/graph/topo.h) × {} links of a GPU, network {:g} Gbit/s a GPU"
_PCIE = "NCCL's figure of PCIe {} x16 (src/graph/topo.h), network {:g} Gbit/s a GPU"

FABRICS = {
    "a100-sxm-80gb": Fabric(12 * 20.0e9, True, "ampere", _NCCL.format(12, 200), network=25e9),
    "h100-sxm-80gb": Fabric(18 * 20.6e9, True, "hopper", _NCCL.format(18, 400), switch=True),
    "h200-sxm-141gb": Fabric(18 * 20.6e9, True, "hopper", _NCCL.format(18, 400), switch=True),
    "l40s": Fabric(24e9, False, "ampere", _PCIE.format(4, 200), network=25e9),
    "rtx-4090": Fabric(24e9, False, "ampere", _PCIE.format(4, 100), network=12.5e9),
    "rtx-pro-6000": Fabric(48e9, False, "blackwell", _PCIE.format(5, 400)),
}
