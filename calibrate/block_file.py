"""KV blocks in a file, and their way between it and host memory.

What is written is on the disk before the call returns, and is dropped from the operating system's cache: so what is
read comes from the disk, and takes what a disk takes (where the file system has one).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ground.errors import UserError


class BlockFile:
    """Room for `blocks` blocks of `block_bytes` in a file without a name, which ends with the process."""

    def __init__(self, blocks: int, block_bytes: int, folder: Path | None = None) -> None:
        """`folder`: where it is; where the system keeps temporary files if not given.

        Raises:
            UserError: there is no room for it, or the operating system cannot drop a file from its cache.
        """
        if not hasattr(os, "posix_fadvise"):
            raise UserError("engine.kv_offload.disk needs posix_fadvise; expected Linux, or no disk tier")
        self.block_bytes = block_bytes
        where = tempfile.gettempdir() if folder is None else str(folder)
        try:
            self._file = tempfile.TemporaryFile(dir=where)  # noqa: SIM115
            os.posix_fallocate(self._file.fileno(), 0, blocks * block_bytes)
        except OSError as error:
            raise UserError(
                f"{where}: no file of {blocks * block_bytes} bytes for engine.kv_offload.disk ({error.strerror}); "
                "expected room, or TMPDIR set to a folder that has it"
            ) from error

    def write(self, memory: np.ndarray, host: Sequence[int], disk: Sequence[int]) -> None:
        """Blocks of `memory`, (blocks, block_bytes) of bytes, in places `host`, to places `disk` of the file."""
        number = self._file.fileno()
        for from_place, to_place in zip(host, disk, strict=True):
            rest, at = memoryview(memory[from_place]), to_place * self.block_bytes
            while rest:
                written = os.pwrite(number, rest, at)
                rest, at = rest[written:], at + written
        os.fdatasync(number)
        for place in disk:
            os.posix_fadvise(number, place * self.block_bytes, self.block_bytes, os.POSIX_FADV_DONTNEED)

    def read(self, memory: np.ndarray, host: Sequence[int], disk: Sequence[int]) -> None:
        """The other way."""
        number = self._file.fileno()
        for to_place, from_place in zip(host, disk, strict=True):
            rest, at = memoryview(memory[to_place]), from_place * self.block_bytes
            while rest:
                count = os.preadv(number, [rest], at)
                assert count, "the file is shorter than it was made"
                rest, at = rest[count:], at + count

    def close(self) -> None:
        self._file.close()
