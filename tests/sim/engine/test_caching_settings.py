"""The text of PYTORCH_ALLOC_CONF: read as PyTorch reads it, and refused where PyTorch refuses it."""

import re

import pytest

from sim.engine.allocator.caching_settings import MIB, CachingSettings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("divisions", "size", "rounded"),
    [("4", 1200, 1536), ("4", 5000, 5120), ("8", 5000, 5120), ("4", 2048, 2048), ("2", 1025, 1536), ("1", 1300, 1536)],
)
def test_sizes_round_up_to_divisions_of_a_power_of_two(divisions: str, size: int, rounded: int) -> None:
    assert CachingSettings.parse(f"roundup_power2_divisions:{divisions}").round(size) == rounded


def test_settings_are_read_as_pytorch_reads_them() -> None:
    conf = (
        "max_split_size_mb:128, garbage_collection_threshold:0.6,"
        "roundup_power2_divisions:[4:2,16:4,>:8],expandable_segments:True,pinned_use_background_threads:True"
    )
    parsed = CachingSettings.parse(conf, limit=GIB)
    assert parsed == CachingSettings(
        max_split_size=128 * MIB,
        garbage_collection_threshold=0.6,
        roundup_power2_divisions=(2, 2, 2, 0, 4, *[8] * 11),
        expandable_segments=True,
        limit=GIB,
    )
    assert CachingSettings.parse("backend:native") == CachingSettings.parse("") == CachingSettings()
    assert CachingSettings.parse(" max_split_size_mb : 20 , ").max_split_size == 20 * MIB


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync is unknown"),
        ("no_such:1", "no_such:1 is unknown"),
        ("max_split_size_mb:x", "max_split_size_mb is 'x'"),
        ("roundup_power2_divisions:3", "roundup_power2_divisions is '3'"),
        ("max_split_size_mb:19", "max_split_size_mb is 19; expected at least 20"),
        ("max_non_split_rounding_mb:1", "max_non_split_rounding_mb is 1; expected at least 20"),
        ("garbage_collection_threshold:1.0", "garbage_collection_threshold is 1.0; expected more than 0 and less"),
        ("garbage_collection_threshold:nan", "garbage_collection_threshold is nan"),
        ("expandable_segments", "'expandable_segments' is no setting; expected name:value"),
        ("expandable_segments=True", "'expandable_segments=True' is no setting"),
        ("max_split_size_mb 64", "'max_split_size_mb 64' is no setting"),
        ("expandable_segments:True max_split_size_mb:64", "is no setting"),
        ("expandable_segments:True,,max_split_size_mb:64", "',max_split_size_mb:64' is no setting"),
        ("roundup_power2_divisions:[4:2", "is no setting"),
        ("expandable_segments:", "is no setting"),
    ],
)
def test_settings_that_pytorch_refuses_are_refused(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        CachingSettings.parse(wrong)
