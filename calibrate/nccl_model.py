"""What collectives take where nobody measured them: NCCL's own cost model, and those of kernels beside it.

Time is latency + bytes / bandwidth for each algorithm and protocol, and NCCL runs what that says is fastest; so does
this. The formulas and constants are those of NVIDIA/nccl, src/graph/tuning.cc (5067397, 2026-06), without CollNet and
PAT, which need a switch of InfiniBand or one GPU a node. NCCL chooses by it; it was not made to predict. Against the
bundled tables it errs as `tests/calibrate/test_nccl_model.py` says, so a measured table always comes first.

All-to-all and send/receive have no model there: they take the ring's latency of one hop and the bytes that leave a GPU.
Without NVLink more than two GPUs share what their host joins them by (`fabric.Bridge`): all hops of a ring that pass
it, and all of an all-to-all. What a host's memory and its virtualisation add nobody publishes.

The custom all-reduce is vLLM's (csrc/custom_all_reduce.cuh): in one shot every rank reads all others' buffers, in two
shots each reduces its part and then gathers the others'. Which of them runs is vLLM's rule; a barrier takes the 5 µs
that 8 × H100 take for 8 KiB inside a CUDA graph (AIConfigurator, h100_sxm/vllm/0.24.0: 5.1 µs).
"""

from __future__ import annotations

from math import log2

from calibrate.fabric import Fabric, Generation

KIB = 1 << 10
MIB = 1 << 20

OPERATIONS = ("all_reduce", "all_reduce_nccl", "all_gather", "reduce_scatter", "all_to_all", "send_recv")

_PROTOCOLS = ("LL", "LL128", "Simple")
# Seconds × 1e6, by protocol.
_BASE = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
_HOP = {
    "nvlink": {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)},
    "pci": {"tree": (1.0, 1.9, 4.0), "ring": (1.0, 2.5, 5.7)},
    "net": {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)},
}
_NVLS = 25.0
_NVLS_EFFICIENCY = {"hopper": 0.85, "blackwell": 0.74}
_CHANNELS = 16  # of NVLS, one of which NCCL does not count
# Bytes/s × 1e-9 that the protocol LL reaches at most: on one node by GPU, on two and on more by CPU (the faster one).
_LL_MOST: dict[Generation, float] = {"ampere": 87.7, "hopper": 141.0, "blackwell": 282.0}
_LL_MOST_NODES = (22.5, 19.0)
# What a tree reaches of its bandwidth, by protocol, for messages of 64 B, 128 B, 256 B ... 256 MiB.
_TREE_REACHES = (
    (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 1, 1),
    (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9),
)
_PLATEAU_BYTES, _PLATEAU = 64, 1.4  # a ring between nodes, from so many bytes a channel and rank on
_BARRIER = 5.0
_CUSTOM_RANKS, _CUSTOM_MOST = (2, 4, 6, 8), 8 * MIB


def choices(fabric: Fabric, operation: str, ranks: int, size: float) -> dict[str, float]:
    """Seconds of one call by each algorithm that can run it, named as "ring LL128".

    `size` is bytes of one rank's input; `operation` one of `OPERATIONS`. `all_reduce` is a custom kernel where vLLM
    would run one, else NCCL's.
    """
    whole = size * ranks if operation == "all_gather" else size
    if operation == "all_to_all":
        return {"direct": _all_to_all(fabric, ranks, size)}
    if operation == "send_recv":
        return {"direct": _send(fabric, ranks, size)}
    if operation == "all_reduce" and (custom := _custom(fabric, ranks, size)):
        return custom
    found = {f"ring {name}": _ring(fabric, operation, ranks, whole, p) for p, name in enumerate(_PROTOCOLS)}
    if operation.startswith("all_reduce"):
        found |= {f"tree {name}": _tree(fabric, ranks, whole, p) for p, name in enumerate(_PROTOCOLS)}
    if fabric.switch and ranks > 2 and fabric.nodes(ranks) == 1:
        found["NVLS"] = _nvls(fabric, operation, ranks, whole)
    if not fabric.nvlink:  # LL128 needs stores of 128 bytes that arrive whole, which only NVLink promises
        found = {name: seconds for name, seconds in found.items() if not name.endswith("LL128")}
    return found


def seconds(fabric: Fabric, operation: str, ranks: int, size: float) -> float:
    """Of one call, by the algorithm that is fastest; 0 for a single rank."""
    return 0.0 if ranks == 1 else min(choices(fabric, operation, ranks, size).values())


def _hop_latencies(fabric: Fabric, algorithm: str) -> tuple[float, float, float]:
    return _HOP["nvlink" if fabric.nvlink else "pci"][algorithm]


def _steps(operation: str, count: int) -> int:
    return (2 if operation.startswith("all_reduce") else 1) * (count - 1)


def _ring(fabric: Fabric, operation: str, ranks: int, whole: float, protocol: int) -> float:
    nodes, steps = fabric.nodes(ranks), _steps(operation, ranks)
    bus = fabric.bus(ranks)
    if protocol == 0:
        most = _LL_MOST[fabric.generation] if nodes == 1 else _LL_MOST_NODES[min(nodes, 3) - 2]
        bus = min(bus / 2, most * 1e9)
    elif protocol == 1:
        bus *= 0.92
    between = _steps(operation, nodes)
    own, net = _hop_latencies(fabric, "ring")[protocol], _HOP["net"]["ring"][protocol]
    if nodes > 1:  # a host posts every hop
        own = max(own, 3.0 if protocol == 2 else 1.0)
    latency = _BASE["ring"][protocol] + (steps - between) * own + between * net
    many = whole / (_CHANNELS * ranks) >= _PLATEAU_BYTES
    if nodes > 1 and protocol == 2 and many and operation.startswith("all_reduce"):
        latency *= _PLATEAU
    return latency * 1e-6 + whole * steps / ranks / bus


def _tree(fabric: Fabric, ranks: int, whole: float, protocol: int) -> float:
    nodes = fabric.nodes(ranks)
    bus = fabric.bus(ranks) * 0.92
    if protocol == 0:
        bus /= 3.8
    elif protocol == 1:
        bus *= 7 / 9 if nodes == 1 else 120 / 128
    own, net = _hop_latencies(fabric, "tree")[protocol], _HOP["net"]["tree"][protocol]
    latency = _BASE["tree"][protocol] + 2 * ((ranks / nodes - 1) * own + int(log2(nodes)) * net)
    reaches = _TREE_REACHES[protocol]
    power = int(log2(whole / 64)) if whole >= 64 else 0
    return latency * 1e-6 + whole * 2 / bus / (reaches[power] if power < len(reaches) else 1.0)


def _nvls(fabric: Fabric, operation: str, ranks: int, whole: float) -> float:
    """The switch adds up what passes it: every byte leaves a GPU once and comes back once."""
    bus = fabric.bus(ranks) * _NVLS_EFFICIENCY[fabric.generation] * (_CHANNELS - 1) / _CHANNELS
    if operation.startswith("all_reduce"):
        return _NVLS * 1e-6 + whole * (ranks - 1) / ranks / bus
    return _NVLS * 1e-6 + whole / (bus * (ranks - 1) / ranks)


def _hop(fabric: Fabric, between_nodes: bool) -> float:
    hop = _HOP["net"]["ring"][2] if between_nodes else _hop_latencies(fabric, "ring")[2]
    return (_BASE["ring"][2] + hop) * 1e-6


def _send(fabric: Fabric, ranks: int, size: float) -> float:
    between_nodes = fabric.nodes(ranks) > 1
    slower = min(fabric.bandwidth, fabric.network) if between_nodes else fabric.bandwidth
    return _hop(fabric, between_nodes) + size / slower


def _all_to_all(fabric: Fabric, ranks: int, size: float) -> float:
    """All at once; what goes to other nodes takes the network, and the rest the links of the node."""
    nodes = fabric.nodes(ranks)
    local, far = size * (ranks / nodes - 1) / ranks, size * (1 - 1 / nodes)
    if not fabric.nvlink:  # the network card is reached over the same link
        local += far
    ways = [local / fabric.bandwidth, far / fabric.network]
    if bridge := fabric.shared(ranks):
        ways.append(size * bridge.passing(ranks) / bridge.bandwidth)
    return _hop(fabric, nodes > 1) + max(ways)


def _custom(fabric: Fabric, ranks: int, size: float) -> dict[str, float]:
    """vLLM's kernel by its own rule; nothing where it would not run."""
    linked = fabric.nvlink or ranks == 2
    if ranks not in _CUSTOM_RANKS or not linked or size > _CUSTOM_MOST or fabric.nodes(ranks) > 1:
        return {}
    if ranks == 2 or size < (512 * KIB if ranks <= 4 else 256 * KIB):
        return {"one-shot": _BARRIER * 1e-6 + (ranks - 1) * size / fabric.bandwidth}
    return {"two-shot": 2 * _BARRIER * 1e-6 + 2 * (ranks - 1) / ranks * size / fabric.bandwidth}
