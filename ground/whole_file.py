"""A file that exists whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield where to write instead, in the same folder; on success it is renamed to `target`, which it replaces.

    Work that is killed or fails leaves nothing under the final name, and what was there before stays.
    """
    partial = target.with_name(f".{target.name}.partial")
    yield partial
    partial.replace(target)
