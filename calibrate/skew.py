"""How much longer decode attention takes than at a batch's mean context, because contexts differ.

A batch is described by three numbers that a scheduler can keep as running sums: how many sequences decode, the squared
coefficient of variation of their contexts, and the longest over the mean. Between the nodes of a grid of the latter two
the excess is linear; a node is computed when it is first needed (`calibrate.skew_models`).
"""

from __future__ import annotations

from math import log2
from typing import NamedTuple, Protocol

import numpy as np

_VARIATION = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0])
_LONGEST = np.array([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0, 10.0, 16.0, 32.0])


class Spread(NamedTuple):
    """How unequal the cached tokens of decoding sequences are: the sum of their squares, and the largest."""

    squares: int
    longest: int


Prefill = tuple[int, int]  # the step's prefill tokens, and the tokens cached before them; ALONE if it only decodes
ALONE: Prefill = (0, 0)


class Excess(Protocol):
    """Relative excess of a step's attention: 0.05 is 5 % more than if all contexts were the mean."""

    def __call__(self, sequences: int, variation: float, longest: float, prefill: Prefill) -> float: ...


class Skew:
    """The excess between its nodes."""

    def __init__(self, excess: Excess) -> None:
        self._excess = excess
        self._nodes: dict[tuple[int, Prefill], np.ndarray] = {}

    def relative(
        self,
        sequences: int,
        kv_tokens: np.ndarray,
        squares: np.ndarray,
        longest: np.ndarray,
        prefill: Prefill = ALONE,
    ) -> np.ndarray:
        """Relative excess of steps that decode as many sequences beside a prefill.

        `kv_tokens`, `squares` and `longest` are those of a `Spread`, one a step, as floats, (steps,).
        """
        if sequences < 2:
            return np.zeros(len(kv_tokens))
        nonzero = np.maximum(kv_tokens, 1.0)
        variation = np.clip(sequences * squares / (nonzero * nonzero) - 1.0, 0.0, _VARIATION[-1])
        over_mean = np.clip(sequences * longest / nonzero, 1.0, _LONGEST[-1])
        row, row_share = _cell(_VARIATION, variation)
        column, column_share = _cell(_LONGEST, over_mean)
        nodes = self._filled(_rounded(sequences), (_power(prefill[0]), _power(prefill[1])), row, column)
        low = nodes[row, column] + column_share * (nodes[row, column + 1] - nodes[row, column])
        high = nodes[row + 1, column] + column_share * (nodes[row + 1, column + 1] - nodes[row + 1, column])
        return low + row_share * (high - low)

    def _filled(self, sequences: int, prefill: Prefill, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The nodes of as many sequences beside such a prefill; those around the given cells are known."""
        key = (sequences, prefill)
        if key not in self._nodes:
            self._nodes[key] = np.full((len(_VARIATION), len(_LONGEST)), np.nan)
        nodes = self._nodes[key]
        corners = {
            (int(row) + i, int(column) + j)
            for row, column in {*zip(rows.tolist(), columns.tolist(), strict=True)}
            for i in (0, 1)
            for j in (0, 1)
        }
        for row, column in corners:
            if np.isnan(nodes[row, column]):
                nodes[row, column] = self._excess(sequences, float(_VARIATION[row]), float(_LONGEST[column]), prefill)
        return nodes


def _rounded(sequences: int) -> int:
    """Engines pad larger batches to multiples of eight; nodes are kept for those alone."""
    return sequences if sequences <= 8 else -(-sequences // 8) * 8


def _power(tokens: int) -> int:
    """The power of two nearest to so many tokens of a prefill, from 64 on: nodes are kept for those alone."""
    return 2 ** round(log2(tokens)) if tokens > 64 else 64 if tokens else 0


def _cell(grid: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cell = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    return cell, (values - grid[cell]) / (grid[cell + 1] - grid[cell])
