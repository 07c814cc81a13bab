"""Causes as flame graphs for speedscope (https://www.speedscope.app/file-format-schema.json).

Every profile is of the type `sampled`: stacks of causes, outermost first, each with its seconds. In order of time (the
viewer's first view) a replica's steps read from left to right; summed (its view "left heavy") they are its causes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.results.diagnosis.attribution import Pieces, pieces_of
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis, Part

SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_SLICES = 400  # of a replica's time
_REPLICAS = 16  # that get a profile of their own


def flame_graphs(diagnosis: Diagnosis) -> dict[str, Any]:
    """The file as a JSON-able dictionary: all requests, the slowest, and each replica over time."""
    frames = _Frames()
    profiles = [
        _profile("what all requests waited for", *_samples(diagnosis.all, frames)),
        _profile(
            f"what the slowest {diagnosis.slowest.requests:,} requests waited for", *_samples(diagnosis.slowest, frames)
        ),
    ]
    if diagnosis.rows is not None:
        replicas = list(pieces_of(diagnosis.rows).items())[:_REPLICAS]
        profiles += [_profile(f"replica {number}'s time", *_over_time(own, frames)) for number, own in replicas]
    return {
        "$schema": SCHEMA,
        "name": diagnosis.name,
        "exporter": "simctl",
        "activeProfileIndex": 0,
        "shared": {"frames": frames.list},
        "profiles": profiles,
    }


class _Frames:
    """Stacks by their place in the list of frames. Equal names within different stacks are different frames."""

    def __init__(self) -> None:
        self.list: list[dict[str, str]] = []
        self._places: dict[tuple[str, ...], int] = {}

    def stack(self, names: tuple[str, ...]) -> list[int]:
        stack = []
        for depth in range(1, len(names) + 1):
            path = names[:depth]
            if path not in self._places:
                self._places[path] = len(self.list)
                self.list.append({"name": names[depth - 1]})
            stack.append(self._places[path])
        return stack


def _samples(part: Part, frames: _Frames) -> tuple[list[list[int]], list[float]]:
    """The total of all requests by cause. Those of one stack stand together."""
    causes = [cause for cause in CAUSES if part.causes.get(cause, 0.0) > 0.0]
    return (
        [frames.stack(CAUSES[cause].stack) for cause in causes],
        [part.causes[cause] * part.requests for cause in causes],
    )


def _over_time(pieces: Pieces, frames: _Frames) -> tuple[list[list[int]], list[float]]:
    """A replica's time in slices of as many pieces, each slice by cause; what lies between steps may be idle."""
    begins = np.unique(np.linspace(0, len(pieces.gap), _SLICES + 1).astype(int))[:-1]
    sums = {
        CAUSES[cause].stack: np.add.reduceat(np.where(pieces.gap, 0.0, pieces.seconds[cause]), begins)
        for cause in CAUSES
        if cause in pieces.seconds
    }
    sums["between steps",] = np.add.reduceat(np.where(pieces.gap, np.diff(pieces.edges), 0.0), begins)
    stacks = {names: frames.stack(names) for names in sums}
    filled = [(names, float(sums[names][i])) for i in range(len(begins)) for names in sums if sums[names][i] > 0.0]
    return [stacks[names] for names, _ in filled], [seconds for _, seconds in filled]


def _profile(name: str, samples: list[list[int]], weights: list[float]) -> dict[str, Any]:
    total = float(np.sum(weights)) if weights else 0.0
    return {
        "type": "sampled",
        "name": name,
        "unit": "seconds",
        "startValue": 0,
        "endValue": total,
        "samples": samples,
        "weights": weights,
    }
