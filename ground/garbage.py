"""Without Python's search for reference cycles for a while. What nobody refers to any more is freed all the same."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is searched for cycles in here, unless somebody asks; behind it everything is as it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def collected_before() -> Iterator[None]:
    """The same, after a search: for what is timed, which a search would delay."""
    gc.collect()
    with uncollected():
        yield
