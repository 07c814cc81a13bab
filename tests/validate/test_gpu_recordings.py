"""The recordings of a real GPU's allocator, replayed to the last event, address and block."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from validate.allocator.ledger import check
from validate.allocator.pools import pools_of
from validate.allocator.recording import Recording
from validate.allocator.replay import replay

FOLDER = Path(__file__).parents[2] / "validate" / "results" / "h100-sxm-80gb" / "recordings"
KINDS = ("dynamic", "bucketed", "expandable", "graphs")
DEVICE_BYTES = 85_017_493_504


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_does_what_the_device_did(kind: str) -> None:
    recording = Recording.load(FOLDER / kind)
    assert recording.facts["machine"]["device"] == "NVIDIA H100 80GB HBM3"
    found = replay(recording, device_bytes=DEVICE_BYTES)
    assert found.difference is None
    assert found.events == len(recording.events) > 10_000 and found.blocks > 0


def test_one_byte_more_is_noticed() -> None:
    recording = Recording.load(FOLDER / "dynamic")
    row = recording.events.with_row_index().filter(pl.col("action") == "alloc")["index"][5000]
    size = pl.when(pl.int_range(pl.len()) == row).then(pl.col("size") + (1 << 20)).otherwise(pl.col("size"))
    changed = replace(recording, events=recording.events.with_columns(size=size))
    assert replay(changed, device_bytes=DEVICE_BYTES).difference is not None


def test_the_graphs_events_are_told_their_pool_by_their_segments() -> None:
    """The events of this PyTorch state none; without them nothing could be replayed."""
    recording = Recording.load(FOLDER / "graphs")
    assert recording.events["pool_owner"].null_count() == len(recording.events)
    pools = pools_of(recording)
    private = {pool for pool in pools if pool != (0, 0)}
    stated = recording.layout.select("pool_owner", "pool_number").unique().rows()
    assert private and private <= set(stated)
    # As if all were of the ordinary pool the two go apart.
    plain = recording.events.with_columns(pool_owner=pl.lit(0, pl.Int64), pool_number=pl.lit(0, pl.Int64))
    assert replay(replace(recording, events=plain), device_bytes=DEVICE_BYTES).difference is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_closes(kind: str) -> None:
    recording = Recording.load(FOLDER / kind)
    check(recording.events, recording.layout)  # raises where it does not
    assert recording.facts["ledger"] == "closes"
