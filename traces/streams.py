"""Named random streams: what one part of a trace draws does not depend on what another part drew."""

from __future__ import annotations

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator of (seed, name): always the same, and independent of every other name's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(name.encode())))
