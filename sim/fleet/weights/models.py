"""The models that hosts may be asked for: how large each is, and which version of it is the newest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

import polars as pl

from traces.streams import stream


@dataclass(eq=False, slots=True)
class Weights:
    """One version of a model's weights on one host, from the first request for it until it is dropped."""

    name: str
    version: int
    size: int  # bytes
    resident: bool = False
    loads: int = 0  # of it that are under way
    users: int = 0  # requests that wait for it or run
    uses: int = 0  # requests that ever did
    idle_since: float = 0.0


class Models:
    """Sizes in bytes, and versions. A new version of a model comes every `update_every` seconds, of each at an instant
    of its own that is drawn from the stream of its name; 0 is the version of the run's begin."""

    def __init__(
        self, default_size: int, sizes: Mapping[str, int], *, update_every: float | None = None, seed: int = 0
    ) -> None:
        self._default_size = default_size
        self._sizes = sizes
        self._update_every = update_every
        self._seed = seed
        self._first_update: dict[str, float] = {}

    def size(self, name: str) -> int:
        return self._sizes.get(name, self._default_size)

    def version(self, name: str, now: float) -> int:
        every = self._update_every
        if every is None:
            return 0
        if name not in self._first_update:
            # In (0, every]: what is loaded before the run is not outdated as it begins.
            drawn = stream(self._seed, f"weight update {name}").uniform(0.0, every)
            self._first_update[name] = every - float(drawn)
        return floor((now - self._first_update[name]) / every) + 1


def models_asked(requests: pl.DataFrame, default: str) -> list[str]:
    """The model of each request, by request_id; `default` where the trace names none."""
    if "model" not in requests.columns:
        return [default] * len(requests)
    return requests.sort("request_id")["model"].fill_null(default).to_list()
