"""Length pairs drawn from a trace file: prompt and output of one request stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ground.errors import UserError
from ground.spec import Spec
from traces.loading import read_as_recorded
from traces.readers import vidur
from traces.readers.raw import open_raw


class Resample(Spec):
    file: str  # relative to the folder of the spec
    format: str | None = None
    columns: dict[str, str | int] | None = None

    def draw(self, rng: np.random.Generator, size: int, base_dir: Path) -> NDArray[np.int64]:
        """Shape (size, 2): prompt and output tokens of requests drawn with replacement."""
        pairs = _pairs(self, base_dir / self.file)
        return pairs[rng.integers(0, len(pairs), size)]


def _pairs(spec: Resample, path: Path) -> NDArray[np.int64]:
    if (
        (spec.format or vidur.NAME) == vidur.NAME
        and spec.columns is None
        and vidur.is_lengths_only(raw := open_raw(path))
    ):
        pairs = pl.DataFrame(vidur.lengths(raw)).filter(pl.all_horizontal(pl.all() > 0))
        if pairs.is_empty():
            raise UserError(f"{path}: no row has both prompt and output tokens")
    else:
        pairs = read_as_recorded(path, spec.format, spec.columns, allow_unsorted=True).requests
    return pairs.select("prompt_tokens", "output_tokens").to_numpy()
