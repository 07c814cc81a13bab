"""Requests that belong together, and the numbers they carry: what moving and choosing requests has in common."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray


def own_or_inherited_arrival(table: pl.DataFrame) -> NDArray[np.float64]:
    """For each row its arrival, or that of the first ancestor that has one."""
    arrival = table["arrival"].to_list()
    if "parent" in table.columns:
        for row, parent in enumerate(table["parent"].to_list()):
            if arrival[row] is None:
                arrival[row] = arrival[parent]
    return np.array(arrival, dtype=float)


def renumber(table: pl.DataFrame, old: pl.Series) -> pl.DataFrame:
    """Number the rows densely; `parent` speaks of `old` numbers and is translated."""
    new = pl.int_range(len(table), dtype=pl.Int64, eager=True)
    if "parent" in table.columns:
        table = table.with_columns(pl.col("parent").replace_strict(old, new, default=None, return_dtype=pl.Int64))
    return table.with_columns(request_id=new)
