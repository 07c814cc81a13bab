"""How properties are checked: without a deadline, as a busy machine is no failure; the draws the same or new ones.

By default the draws follow from the test's code alone: a change is judged by what it changed and not by chance. New
draws are looked for by `pytest --hypothesis-profile fresh`, which `make bench` runs.
"""

import gc
import os

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# The tests run in as many processes as there are cores: threads of torch's own would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same draws", _UNHURRIED, derandomize=True)
settings.register_profile("fresh", _UNHURRIED, derandomize=False, print_blob=True)
settings.load_profile("same draws")


def pytest_collection_finish() -> None:
    """Whoever collects garbage before he measures need not look at all that the tests have imported."""
    gc.collect()
    gc.freeze()
    if settings.default.derandomize:
        # Hypothesis also draws numbers that stand in the modules that are loaded, which are others in every process.
        providers._get_local_constants = lambda: providers._local_constants
