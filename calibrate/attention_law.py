"""Seconds of a step's attention, all layers: prefills, decodes, and both in one kernel call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import polars as pl

from calibrate.curve import Curve, Surface
from calibrate.profile import Profile
from calibrate.skew import Skew, Spread
from ground.errors import UserError

Work = Callable[[float, float], float]


def prefill_work(new: float, cached: float) -> float:
    """Query-key pairs of a causal prefill, to which its attention FLOPs are proportional."""
    return new * cached + new * (new + 1) / 2


class AttentionLaw:
    """Attention of one profile, times its layers.

    Where the profile holds batches of a prefill beside decodes, one kernel call serves a whole step: each prefill adds
    what it takes beyond a launch, and decoding sequences add what they were measured to add beside the step's longest
    chunk. Where it does not, prefills and decodes are kernel calls of their own and add up.
    """

    def __init__(self, profile: Profile, layers: int, skew: Skew | None, table: pl.DataFrame | None = None) -> None:
        """`table`: that of another kernel than the profile's own, with the same columns."""
        table = profile.table("attention") if table is None else table
        self.prefill = _surface(
            profile, table.filter(pl.col("n_decode") == 0), ("prefill_chunk", "kv_prefill"), layers, prefill_work
        )
        self.decode = _surface(
            profile, table.filter(pl.col("prefill_chunk") == 0), ("n_decode", "kv_decode"), layers, None
        )
        self._fresh: dict[int, tuple[float, bool]] = {}
        self.skew = skew
        beside = table.filter((pl.col("prefill_chunk") > 0) & (pl.col("n_decode") > 0))
        self.one_kernel = not beside.is_empty()
        self._beside = None if beside.is_empty() else _BesidePrefill(beside, layers)
        self._launch = self.prefill(self.prefill.keys[0], 0) if self._beside else 0.0

    def _fresh_prompt(self, tokens: int) -> tuple[float, bool]:
        """Of a prompt with nothing cached, remembered: there are no more lengths than a step has tokens."""
        known = self._fresh.get(tokens)
        if known is None:
            known = self._fresh[tokens] = self.prefill.look_up(tokens, 0)
        return known

    def mixed(
        self,
        prefills: Sequence[tuple[int, int]],
        decodes: int,
        kv_tokens: int,
        spread: Spread | None,
        alone: Curve | None,
    ) -> tuple[float, bool]:
        """Seconds of a step with at least one prefill, and whether all of it lies inside the measured grid.

        `alone`: the curve of so many decodes over the sum of their cached tokens; None where nothing decodes.
        """
        inside, launch = True, self._launch
        seconds = launch
        for new, cached in prefills:
            alone_seconds, covered = self.prefill.look_up(new, cached) if cached else self._fresh_prompt(new)
            seconds += alone_seconds - launch
            inside = inside and covered
        if alone is None:
            return seconds, inside
        if self._beside is None:
            added = alone(kv_tokens) * self._longer(decodes, kv_tokens, spread)
            return seconds + added, inside and alone.covers(kv_tokens)
        chunk, cached = max(prefills)
        added, covered = self._beside(chunk, cached, decodes, kv_tokens / decodes, self.prefill)
        seconds = (seconds + added) * self._longer(decodes, kv_tokens, spread, prefills, cached)
        return seconds, inside and covered

    def _longer(
        self,
        decodes: int,
        kv_tokens: int,
        spread: Spread | None,
        prefills: Sequence[tuple[int, int]] = (),
        cached: int = 0,
    ) -> float:
        """By what factor unequal contexts make decoding longer, alone or in one kernel call with `prefills`."""
        if not self.skew or not spread:
            return 1.0
        prefill = (sum(new for new, _ in prefills), cached)
        sums = [np.array([float(value)]) for value in (kv_tokens, spread.squares, spread.longest)]
        return 1.0 + float(self.skew.relative(decodes, sums[0], sums[1], sums[2], prefill)[0])


class _BesidePrefill:
    """What n decodes add to the attention of one prefill: linear in chunk, prefix, n and mean context."""

    def __init__(self, table: pl.DataFrame, layers: int) -> None:
        self._curves: dict[int, dict[int, dict[int, Curve]]] = {}  # chunk → prefix → decodes → curve over context
        columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds")
        rows = table.select(columns).sort(columns[:4]).iter_rows()  # one pass: grouping makes thousands of small frames
        for (chunk, prefix, decodes), points in groupby(rows, key=itemgetter(0, 1, 2)):
            contexts, seconds = zip(*((row[3], layers * row[4]) for row in points), strict=True)
            self._curves.setdefault(chunk, {}).setdefault(prefix, {})[decodes] = Curve(contexts, seconds)

    def __call__(self, chunk: int, prefix: int, decodes: int, context: float, prefill: Surface) -> tuple[float, bool]:
        """Seconds beyond the prefill's own, and whether it lies inside the grid; beyond it the border's value holds,
        but over contexts and decodes it goes on along the last cell."""
        seconds, inside = 0.0, self._inside(chunk, prefix, decodes)
        for at_chunk, chunk_share in _clamped(list(self._curves), chunk):
            prefixes = self._curves[at_chunk]
            for at_prefix, prefix_share in _clamped(list(prefixes), prefix):
                curves = prefixes[at_prefix]
                own = prefill(at_chunk, at_prefix)
                share = chunk_share * prefix_share
                for at_decodes, decode_share in _linear([0, *curves], decodes):
                    if at_decodes:
                        curve = curves[at_decodes]
                        seconds += share * decode_share * (curve(context) - own)
                        inside = inside and curve.covers(context)
        return max(0.0, seconds), inside

    def _inside(self, chunk: int, prefix: int, decodes: int) -> bool:
        chunks = list(self._curves)
        prefixes = list(self._curves[chunks[0]])
        most = max(self._curves[chunks[0]][prefixes[0]])
        return chunks[0] <= chunk <= chunks[-1] and prefix <= prefixes[-1] and decodes <= most


def _linear(grid: Sequence[int], value: float) -> tuple[tuple[int, float], ...]:
    """The two grid points around a value and their weights; beyond the grid the last cell goes on."""
    if len(grid) == 1:
        return ((grid[0], 1.0),)
    cell = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 2)
    share = (value - grid[cell]) / (grid[cell + 1] - grid[cell])
    return ((grid[cell], 1.0 - share), (grid[cell + 1], share)) if share else ((grid[cell], 1.0),)


def _clamped(grid: Sequence[int], value: float) -> tuple[tuple[int, float], ...]:
    return _linear(grid, min(max(value, grid[0]), grid[-1]))


def _surface(profile: Profile, table: pl.DataFrame, keys: tuple[str, str], calls: int, work: Work | None) -> Surface:
    if table.is_empty():
        raise UserError(f"profile {profile.name}: kernel class attention has no row that varies {' and '.join(keys)}")
    return rows_over(table, *keys, calls, work)


def rows_over(table: pl.DataFrame, row: str, axis: str, calls: int, work: Work | None = None) -> Surface:
    """A surface of `calls` calls: one curve over `axis` for each value of `row`."""
    curves: dict[float, Curve] = {}
    for (key,), part in table.sort(row, axis).group_by(row, maintain_order=True):
        curves[key] = Curve(part[axis].to_list(), [calls * seconds for seconds in part["seconds"]])
    return Surface(curves, work)
