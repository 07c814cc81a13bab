"""Python's search for reference cycles rests for a while, and is afterwards as it was."""

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from ground.garbage import collected_before, uncollected

Resting = Callable[[], AbstractContextManager[None]]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("resting", [uncollected, collected_before])
def test_the_search_rests_inside_and_is_then_as_it_was(resting: Resting, before: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with resting():
            assert not gc.isenabled()
        assert gc.isenabled() is before
        with pytest.raises(KeyError), resting():
            raise KeyError
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_what_is_timed_begins_without_old_cycles() -> None:
    class Own:
        own: object

    with uncollected():
        cycle = Own()
        cycle.own = cycle
        gone = weakref.ref(cycle)
        del cycle
        assert gone() is not None
        with collected_before():
            assert gone() is None
