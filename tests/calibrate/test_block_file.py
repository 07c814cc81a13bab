"""KV blocks in a file come back as they went, in whatever places."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.block_file import BlockFile
from ground.errors import UserError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9_000))
def test_what_is_read_is_what_was_written_last(seed: int, block_bytes: int) -> None:
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    memory = draw.integers(0, 256, (6, block_bytes), dtype=np.uint8)
    file, on_disk = BlockFile(10, block_bytes), {}
    for _ in range(6):
        count = rng.randint(0, 6)
        host, disk = rng.sample(range(6), count), rng.sample(range(10), count)
        file.write(memory, host, disk)
        on_disk |= {place: memory[at].copy() for place, at in zip(disk, host, strict=True)}
        memory[:] = draw.integers(0, 256, memory.shape, dtype=np.uint8)
    wanted = rng.sample(sorted(on_disk), min(6, len(on_disk)))
    file.read(memory, range(len(wanted)), wanted)
    for at, place in enumerate(wanted):
        assert (memory[at] == on_disk[place]).all()
    file.close()


def test_a_file_that_finds_no_room_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file of \d+ bytes for engine.kv_offload.disk .* expected room, or TMPDIR"):
        BlockFile(1 << 30, 1 << 31, tmp_path)
    with pytest.raises(UserError, match="nowhere: no file of 10 bytes"):
        BlockFile(1, 10, tmp_path / "nowhere")


def test_a_system_whose_cache_would_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(UserError, match="needs posix_fadvise; expected Linux, or no disk tier"):
        BlockFile(1, 10)
