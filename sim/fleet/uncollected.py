"""Without Python's search for reference cycles: a simulation makes next to none, and what it keeps is many objects.

Each search looks at all of them again, and finds nothing: with hundreds of replicas, whose prefix caches are full, that
was a twelfth of a run. What nobody refers to any more is freed all the same.
"""

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
