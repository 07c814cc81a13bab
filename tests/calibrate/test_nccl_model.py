"""Collectives that nobody measured: which algorithm runs, and how far the cost model lies from what was measured."""

from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import median

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibrate.links
from calibrate.collective_law import Collectives
from calibrate.datasheet import devices
from calibrate.fabric import FABRICS, Bridge, Fabric
from calibrate.nccl_model import OPERATIONS, choices, seconds
from ground.errors import UserError

BUNDLED = sorted((Path(calibrate.links.__file__).parent / "collectives").glob("*.parquet"))
H100, A100, L40S = FABRICS["h100-sxm-80gb"], FABRICS["a100-sxm-80gb"], FABRICS["l40s"]
KIB, MIB = 1 << 10, 1 << 20

fabrics = st.sampled_from(list(FABRICS.values()))
operations = st.sampled_from(OPERATIONS)


def bus_factor(operation: str, ranks: int) -> float:
    """Bus bandwidth is bytes of the whole buffer / seconds × this (NVIDIA/nccl-tests, doc/PERFORMANCE.md).

    The whole buffer is one rank's input, but of an all-gather what each gets.
    """
    if operation.startswith("all_reduce"):
        return 2 * (ranks - 1) / ranks
    return 1.0 if operation == "send_recv" else (ranks - 1) / ranks


def fastest(fabric: Fabric, operation: str, ranks: int, size: float) -> str:
    found = choices(fabric, operation, ranks, size)
    return min(found, key=lambda name: found[name])


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_every_measured_point_of_the_bundled_tables_is_met(path: Path) -> None:
    """What comes first: the tables, which the law meets at every point."""
    table = pl.read_parquet(path)
    law = Collectives(table, "bundled", FABRICS[path.stem])
    for name, ranks, size, measured in table.select("operation", "ranks", "bytes", "seconds").iter_rows():
        assert law.seconds(name, ranks, size) == pytest.approx(measured, rel=1e-9), (name, ranks, size)


# How far the fall-back lies from what was measured: the typical factor over all sizes, and the largest. Without NVLink
# more than two GPUs share a bridge of the host; eight L40S take twice of what one PCIe x16 explains, and at one size
# their all-to-all takes six times that.
@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_how_far_the_model_is_from_the_bundled_tables(path: Path) -> None:
    fabric = FABRICS[path.stem]
    for (operation, ranks), rows in pl.read_parquet(path).sort("bytes").group_by("operation", "ranks"):
        if operation == "all_reduce_eager":
            continue
        logs = [
            abs(log(seconds(fabric, str(operation), ranks, size) / measured))  # type: ignore[arg-type]
            for size, measured in rows.select("bytes", "seconds").iter_rows()
        ]
        of_custom_over_pcie = not fabric.nvlink and operation == "all_reduce"
        all_at_once = path.stem == "l40s" and operation == "all_to_all"
        assert exp(median(logs)) < (3.5 if of_custom_over_pcie else 2.5 if all_at_once else 1.85), (operation, ranks)
        assert exp(max(logs)) < (4.0 if of_custom_over_pcie else 6.0 if all_at_once else 3.2), (operation, ranks)


def test_every_device_with_a_datasheet_has_its_links() -> None:
    assert FABRICS.keys() == devices().keys()


@given(fabrics, operations, st.sampled_from([2, 4, 8, 16, 64]), st.integers(1, 1 << 30))
def test_the_fastest_is_taken_and_takes_time(fabric: Fabric, operation: str, ranks: int, size: int) -> None:
    found = choices(fabric, operation, ranks, size)
    assert seconds(fabric, operation, ranks, size) == min(found.values()) > 1e-6
    assert seconds(fabric, operation, 1, size) == 0.0


@given(fabrics, st.sampled_from([one for one in OPERATIONS if one != "all_reduce"]), st.sampled_from([2, 4, 8, 16, 32]))
def test_large_messages_keep_below_the_bandwidth_of_the_links(fabric: Fabric, operation: str, ranks: int) -> None:
    """Bus bandwidth as nccl-tests counts it; a switch that reduces sends every byte once and not twice."""
    size = 1 << 30
    whole = size * (ranks if operation == "all_gather" else 1)
    bus = whole / seconds(fabric, operation, ranks, size) * bus_factor(operation, ranks)
    links = fabric.bandwidth
    if operation == "all_to_all" and fabric.nodes(ranks) > 1 and fabric.nvlink:
        links += fabric.network  # which are two ways out of a GPU
    assert bus <= links * (2.0 if fabric.switch else 1.0)
    if operation != "send_recv" and fabric.nodes(ranks) == 1:
        assert bus > 0.5 * fabric.bus(ranks)


@given(st.sampled_from([one for one in OPERATIONS if one != "send_recv"]), st.sampled_from([4, 8]))
def test_what_passes_a_bridge_passes_it_at_its_bandwidth(operation: str, ranks: int) -> None:
    """Counted from one bridge: all that its GPUs send or get beyond it, in the time of the whole operation."""
    size = 1 << 30
    for bridge in (Bridge(8, 24e9, peers=False), Bridge(2, 32e9, peers=True), Bridge(4, 10e9, peers=True)):
        took = seconds(replace(L40S, bridge=bridge), operation, ranks, size)
        whole = size * (ranks if operation == "all_gather" else 1)
        hops = 1 if bridge.peers else min(bridge.gpus, ranks)
        if operation == "all_to_all":
            outside = ranks - (min(bridge.gpus, ranks) if bridge.peers else 1)
            passed = size / ranks * outside * min(bridge.gpus, ranks)
        else:
            passed = whole * bus_factor(operation, ranks) * hops * (ranks > bridge.gpus or not bridge.peers)
        assert passed / took <= bridge.bandwidth * (1 + 1e-9)
        assert passed == 0 or passed / took > 0.5 * min(bridge.bandwidth, L40S.bandwidth)


def test_two_gpus_share_no_bridge_and_nvlink_has_none() -> None:
    for operation in OPERATIONS:
        assert seconds(L40S, operation, 2, MIB) == seconds(replace(L40S, bridge=None), operation, 2, MIB)
    assert all(fabric.bridge is None for fabric in FABRICS.values() if fabric.nvlink)


@given(st.sampled_from(OPERATIONS), st.sampled_from([4, 8, 16]), st.integers(1, 1 << 30))
def test_a_bridge_never_makes_anything_faster(operation: str, ranks: int, size: int) -> None:
    for fabric in (L40S, FABRICS["rtx-pro-6000"]):
        alone = replace(fabric, bridge=None)
        assert seconds(fabric, operation, ranks, size) >= seconds(alone, operation, ranks, size)


@given(fabrics, st.sampled_from([one for one in OPERATIONS if one != "all_reduce"]), st.sampled_from([2, 4, 8]))
def test_more_bytes_never_take_less_time_without_trees(fabric: Fabric, operation: str, ranks: int) -> None:
    """(A tree's correction jumps at powers of two, as NCCL's does.)"""
    sizes = [2**k for k in range(6, 31)]
    for name in choices(fabric, operation, ranks, 64):
        if not name.startswith("tree"):
            times = [choices(fabric, operation, ranks, size)[name] for size in sizes]
            assert times == sorted(times)


def test_small_messages_take_a_protocol_of_low_latency_and_large_ones_one_of_full_bandwidth() -> None:
    assert fastest(H100, "all_reduce_nccl", 8, 8 * KIB).endswith("LL")
    assert fastest(H100, "all_reduce_nccl", 8, 512 * MIB) == "NVLS"
    assert fastest(A100, "all_reduce_nccl", 8, 512 * MIB) == "ring Simple"
    assert "NVLS" not in choices(A100, "all_reduce_nccl", 8, MIB)
    assert not any(name.endswith("LL128") for name in choices(L40S, "all_reduce_nccl", 4, MIB))


@pytest.mark.parametrize(
    ("ranks", "size", "kind"),
    [
        (2, 8 * MIB, "one-shot"),
        (4, 512 * KIB - 16, "one-shot"),
        (4, 512 * KIB, "two-shot"),
        (8, 256 * KIB - 16, "one-shot"),
        (8, 256 * KIB, "two-shot"),
        (8, 8 * MIB + 16, "NVLS"),
        (3, KIB, "ring LL"),
        (16, KIB, "tree LL"),
    ],
)
def test_the_custom_all_reduce_by_vllms_rule(ranks: int, size: int, kind: str) -> None:
    """One shot up to a threshold, two beyond, NCCL above 8 MiB or where it does not run."""
    assert fastest(H100, "all_reduce", ranks, size) == kind


def test_it_needs_full_links_between_more_than_two() -> None:
    assert set(choices(L40S, "all_reduce", 2, KIB)) == {"one-shot"}
    assert "one-shot" not in choices(L40S, "all_reduce", 4, KIB)


def test_trees_beat_rings_across_many_nodes_for_small_messages() -> None:
    """2 log2(nodes) hops of the network instead of 2 (nodes - 1)."""
    found = choices(H100, "all_reduce_nccl", 64, 64 * KIB)
    assert min(found["tree LL"], found["tree Simple"]) < min(found["ring LL"], found["ring Simple"])


def test_what_goes_to_other_nodes_takes_the_network() -> None:
    within, across = (seconds(H100, "all_to_all", ranks, 1 << 28) for ranks in (8, 16))
    assert within == pytest.approx(7 / 8 * 2**28 / H100.bandwidth, rel=0.05)
    assert across == pytest.approx(1 / 2 * 2**28 / H100.network, rel=0.05)


def test_what_was_not_measured_follows_from_the_fabric() -> None:
    table = pl.read_parquet(next(path for path in BUNDLED if path.stem == "h100-sxm-80gb"))
    law = Collectives(table, "bundled", H100)
    assert not law.has("send_recv", 2)
    with pytest.raises(UserError, match="no unheard between 2 ranks"):
        law.seconds("unheard", 2, MIB)
    assert law.seconds("send_recv", 2, MIB) == seconds(H100, "send_recv", 2, MIB)
    assert law.seconds("all_reduce", 16, MIB) == seconds(H100, "all_reduce", 16, MIB)
