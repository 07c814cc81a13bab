"""Collectives between measured sizes, from a link's two figures, and the bundled tables."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_profile import make_profile

import calibrate.links
from calibrate.collective_law import Collectives, line
from calibrate.datasheet import devices
from calibrate.links import bundled_collectives, collectives_of
from ground.errors import UserError

BUNDLED = sorted((Path(calibrate.links.__file__).parent / "collectives").glob("*.parquet"))

tables = st.dictionaries(st.integers(1, 1 << 30), st.floats(1e-6, 1.0), min_size=1, max_size=8)


def law(times: dict[int, float]) -> Collectives:
    rows = [{"operation": "all_reduce", "ranks": 4, "bytes": size, "seconds": time} for size, time in times.items()]
    return Collectives(pl.DataFrame(rows), "made by the test")


# Between measured sizes


@given(tables)
def test_it_is_exact_at_measured_sizes(times: dict[int, float]) -> None:
    for size, time in times.items():
        assert law(times).seconds("all_reduce", 4, size) == pytest.approx(time, rel=1e-9)


@given(st.floats(-1.0, 2.0), st.floats(1e-9, 1e-3), st.integers(1, 1 << 24), st.integers(2, 64), st.floats(0.0, 1.0))
def test_a_power_of_the_size_is_exact_between(power: float, scale: float, size: int, factor: int, share: float) -> None:
    times = {bytes: scale * (bytes / size) ** power for bytes in (size, size * factor)}
    between = size * factor**share
    expected = scale * factor ** (share * power)
    assert law(times).seconds("all_reduce", 4, between) == pytest.approx(expected, rel=1e-6)


@given(tables, st.floats(1.0, 1e4))
def test_below_the_smallest_its_time_holds_and_beyond_the_largest_it_grows_with_bytes(
    times: dict[int, float], factor: float
) -> None:
    smallest, largest = min(times), max(times)
    found = law(times)
    assert found.seconds("all_reduce", 4, smallest / factor) == pytest.approx(times[smallest], rel=1e-9)
    assert found.seconds("all_reduce", 4, 0) == pytest.approx(times[smallest], rel=1e-9)
    assert found.seconds("all_reduce", 4, largest * factor) == pytest.approx(times[largest] * factor, rel=1e-9)


@given(tables, st.integers(0, 1 << 40))
def test_one_rank_has_nobody_to_talk_to(times: dict[int, float], size: int) -> None:
    assert law(times).seconds("whatever", 1, size) == 0.0


def test_what_was_not_measured_is_named() -> None:
    found = law({1024: 1e-5})
    assert found.has("all_reduce", 4) and not found.has("all_reduce", 2) and not found.has("all_gather", 4)
    for operation, ranks in (("all_reduce", 2), ("all_gather", 4)):
        with pytest.raises(UserError) as caught:
            found.seconds(operation, ranks, 1024)
        assert caught.value.format_message() == (
            f"made by the test: no {operation} between {ranks} ranks; measured are all_reduce × 4"
        )


# A link's latency and bandwidth


@given(st.integers(2, 16), st.floats(1e9, 1e12), st.sampled_from(["all_reduce", "all_gather", "reduce_scatter"]))
def test_without_latency_a_ring_moves_at_the_links_bandwidth(ranks: int, bandwidth: float, operation: str) -> None:
    """Bus bandwidth of nccl-tests: of what one rank sends, 2 (n - 1) / n of a reduced buffer, (n - 1) / n of all that
    is gathered or scattered."""
    table = line(ranks, 0.0, bandwidth).filter(pl.col("operation") == operation)
    whole = table["bytes"] * (ranks if operation == "all_gather" else 1)  # bytes are one rank's input
    factor = (2 if operation == "all_reduce" else 1) * (ranks - 1) / ranks
    assert (whole / table["seconds"] * factor).to_list() == pytest.approx([bandwidth] * len(table))


@given(st.integers(2, 16), st.floats(1e-7, 1e-4))
def test_a_small_message_takes_the_latency_of_every_hop(ranks: int, latency: float) -> None:
    found = Collectives(line(ranks, latency, 1e30), "a link")
    assert found.seconds("all_gather", ranks, 1) == pytest.approx((ranks - 1) * latency)
    assert found.seconds("reduce_scatter", ranks, 1) == pytest.approx((ranks - 1) * latency)
    assert found.seconds("all_reduce", ranks, 1) == pytest.approx(2 * (ranks - 1) * latency)


# The bundled tables


def test_there_are_some_and_each_is_of_a_known_device() -> None:
    assert len(BUNDLED) >= 5
    assert {path.stem for path in BUNDLED} <= devices().keys()


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_table_is_found_by_its_devices_names(path: Path) -> None:
    device = devices()[path.stem]
    for name in (device.name, *device.aliases):
        found = collectives_of(replace(make_profile(), device=name))
        assert found is not None
        for operation in ("all_reduce", "all_reduce_nccl", "all_gather", "reduce_scatter"):
            assert all(found.has(operation, ranks) for ranks in (2, 4, 8)), (name, operation)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_times_are_plausible(path: Path) -> None:
    """A GiB does not pass links in 100 µs, nor a small message faster than a kernel starts; 16 times the bytes take
    longer, but where the framework changes its algorithm."""
    table = pl.read_parquet(path)
    assert table["source"].null_count() == 0
    for (operation, ranks), rows in table.sort("bytes").group_by("operation", "ranks"):
        times = dict(zip(rows["bytes"], rows["seconds"], strict=True))
        assert len(times) == len(rows)
        assert 1e-6 < min(times.values()) < 5e-4, (operation, ranks)
        for size, time in times.items():
            if size * 16 in times:
                least = 1.0 if size >= 1 << 20 else 0.4
                assert times[size * 16] > least * time, (operation, ranks, size)
        if operation.startswith("all_reduce"):
            found = Collectives(table, "bundled").seconds(operation, ranks, 1 << 30)
            assert 1e-3 < found < 2.0, (operation, ranks)


def test_more_ranks_gather_for_longer() -> None:
    table = pl.read_parquet(next(path for path in BUNDLED if path.stem == "h100-sxm-80gb"))
    found = Collectives(table, "bundled")
    times = [found.seconds("all_gather", ranks, 1 << 24) for ranks in (2, 4, 8)]
    assert times == sorted(times) and times[0] < times[-1]


def test_every_bundled_table_is_listed_with_its_source() -> None:
    listed = bundled_collectives()
    assert {device for device, *_ in listed} == {path.stem for path in BUNDLED}
    for path in BUNDLED:
        pairs = set(pl.read_parquet(path).select("source", "operation").unique().iter_rows())
        rows = [row for row in listed if row[0] == path.stem]
        assert {(source, one) for _, operations, _, source in rows for one in operations.split(", ")} == pairs


def test_a_profiles_own_table_comes_first_and_strangers_have_none() -> None:
    profile = replace(make_profile(), device="H100")
    assert collectives_of(replace(profile, device="unheard of")) is None
    modelled = collectives_of(replace(profile, device="RTX4090"))
    assert modelled is not None and not modelled.has("all_reduce", 2) and modelled.seconds("all_reduce", 2, 1024) > 0
    rows = [{"operation": "all_reduce", "ranks": 2, "bytes": 1024, "seconds": 0.5}]
    own = replace(profile, tables={**profile.tables, "collective": pl.DataFrame(rows)})
    found = collectives_of(own)
    assert found is not None and found.source == "profile known" and found.word == "measured"
    theirs = collectives_of(replace(own, provenance=replace(own.provenance, source="imported")))
    assert theirs is not None and theirs.word == "imported"
    assert found.seconds("all_reduce", 2, 1024) == pytest.approx(0.5)
