"""Seconds of copied KV blocks: what was measured, in the direction that is asked for."""

from dataclasses import replace

import polars as pl
import pytest
from known_profile import make_profile

from calibrate.copy_law import CopyLaw
from ground.errors import UserError

ROWS = [
    ("host_to_device", "pageable", 1000, 9.0),
    ("host_to_device", "pinned", 1000, 1.0),
    ("host_to_device", "pinned", 3000, 2.0),
    ("device_to_host", "pinned", 1000, 3.0),
    ("device_to_host", "pinned", 3000, 5.0),
]


def law(rows: list[tuple[str, str, int, float]], **more: float) -> CopyLaw:
    profile = make_profile()
    table = pl.DataFrame(rows, schema=["direction", "memory", "bytes", "seconds"], orient="row")
    return CopyLaw(replace(profile, tables=profile.tables | ({"copy": table} if rows else {})), 500, **more)


def test_directions_add_up_between_and_beyond_measured_sizes() -> None:
    copies = law(ROWS)
    assert copies(4, 0) == (4.0, True)
    assert copies(0, 4) == (1.5, True)
    assert copies(2, 6) == (3.0 + 2.0, True)
    assert copies(0, 8) == (2.5, False)
    assert copies(0, 0) == (0.0, True)


def test_on_a_cpu_both_ways_are_from_host_to_host() -> None:
    copies = law([("host_to_host", "pageable", 1000, 1.0), ("host_to_host", "pageable", 2000, 2.0)])
    assert copies(3, 2) == (1.5 + 1.0, True)


def test_without_measured_copies_a_bandwidth_is_needed() -> None:
    assert law([], bandwidth=2000.0)(0, 8) == (2.0, False)
    with pytest.raises(UserError, match="holds no copies"):
        law([])
