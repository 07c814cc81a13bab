"""Python's search for reference cycles rests while a fleet is simulated, and is afterwards as it was."""

import gc

import pytest

from sim.fleet.uncollected import uncollected


@pytest.mark.parametrize("before", [True, False])
def test_the_search_rests_inside_and_is_then_as_it_was(before: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is before
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_enabled else gc.disable)()
