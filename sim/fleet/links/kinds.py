"""Kinds of links by name: bandwidth and latency, and on whose word. A stated fall-back for what was not given."""

from __future__ import annotations

from dataclasses import dataclass

from ground.assumption import Source


@dataclass(frozen=True)
class LinkKind:
    """One direction: bytes/s, and seconds from the last byte sent to the last byte received."""

    bandwidth: float
    latency: float
    source: Source
    note: str


_SYSTEMS = (
    "AIConfigurator, systems/{}.yaml: published peak of a GPU, one way; latency of a copy between peers, estimated"
)
_FABRIC = "line rate of {} (InfiniBand Trade Association); latency between racks, AIConfigurator, systems/gb300.yaml"
_ETHERNET = "line rate (IEEE 802.3); latency {} taken for a switched network"
_FIBRE = (
    "{:,} km of fibre at 4.9 µs/km (group index 1.468, ITU-T G.652), no routers; the bandwidth is one tenant's, taken"
)


def _system(name: str, bandwidth: float) -> LinkKind:
    return LinkKind(bandwidth, 10e-6, "datasheet", _SYSTEMS.format(name))


def _fabric(rate: str, bandwidth: float) -> LinkKind:
    return LinkKind(bandwidth, 5e-6, "datasheet", _FABRIC.format(rate))


def _ethernet(gigabits: int, latency: float, said: str) -> LinkKind:
    return LinkKind(gigabits / 8 * 1e9, latency, "assumed", _ETHERNET.format(said))


def _fibre(kilometres: int, gigabits: int) -> LinkKind:
    return LinkKind(gigabits / 8 * 1e9, kilometres * 4.9e-6, "assumed", _FIBRE.format(kilometres))


# What is achieved lies below a peak: of PCIe's 20 to 40 % in practice. Who has measured gives the bandwidth.
LINK_KINDS = {
    "nvlink3": _system("a100_sxm", 300e9),
    "nvlink4": _system("h100_sxm", 450e9),
    "nvlink5": _system("b200_sxm", 900e9),
    # A switch joins the NVLinks of all GPUs of a node without a bottleneck of its own: each port is one GPU's NVLinks.
    "nvswitch-a100": _system("a100_sxm", 300e9),
    "nvswitch-h100": _system("h100_sxm", 450e9),
    "nvswitch-b200": _system("b200_sxm", 900e9),
    "pcie4": _system("a100_sxm", 32e9),
    "pcie5": _system("h100_sxm", 64e9),
    "infiniband-hdr": _fabric("HDR, 200 Gbit/s", 25e9),
    "infiniband-ndr": _fabric("NDR, 400 Gbit/s", 50e9),
    "infiniband-xdr": _fabric("XDR, 800 Gbit/s", 100e9),
    "roce-100g": _ethernet(100, 5e-6, "as InfiniBand's,"),
    "roce-200g": _ethernet(200, 5e-6, "as InfiniBand's,"),
    "roce-400g": _ethernet(400, 5e-6, "as InfiniBand's,"),
    "ethernet-10g": _ethernet(10, 50e-6, "50 µs,"),
    "ethernet-25g": _ethernet(25, 50e-6, "50 µs,"),
    "ethernet-100g": _ethernet(100, 50e-6, "50 µs,"),
    "wan-metro": _fibre(100, 10),
    "wan-regional": _fibre(1000, 10),
    "wan-continental": _fibre(4000, 10),
    "wan-intercontinental": _fibre(10000, 10),
}
