"""Raw cells to typed columns; the first cell that does not fit is named."""

from __future__ import annotations

from typing import NoReturn

import polars as pl

from ground.errors import UserError
from traces.readers.raw import RawTable


def seconds(raw: RawTable, column: str, per_second: float = 1, *, nullable: bool = False) -> pl.Series:
    """A column of times, `per_second` units to the second, as float seconds: finite and not negative.

    Raises:
        UserError: names the first row whose cell is empty (unless `nullable`), no number, NaN, infinite or negative.
    """
    cells = raw.frame[column]
    numbers = _cast(cells, pl.Float64())
    bad = (numbers.is_null() & cells.is_not_null()) | ~numbers.is_finite() | (numbers < 0)
    _refuse(raw, column, bad.fill_null(False) if nullable else bad | cells.is_null(), "a finite time of at least 0")
    return numbers / per_second


def tokens(raw: RawTable, column: str) -> pl.Series:
    """A column of token counts as Int64: whole numbers, not negative.

    Raises:
        UserError: names the first row whose cell is empty, no whole number, or negative.
    """
    numbers = integers(raw, column, "a whole number of tokens, at least 0")
    _refuse(raw, column, numbers.is_null() | (numbers < 0), "a whole number of tokens, at least 0")
    return numbers


def integers(raw: RawTable, column: str, expected: str = "a whole number") -> pl.Series:
    """A column of whole numbers as Int64; empty cells stay null. `12.0` counts as whole.

    Raises:
        UserError: names the first row whose cell is not empty and no whole number.
    """
    cells = raw.frame[column]
    numbers = _cast(cells, pl.Float64())
    whole = _cast(cells, pl.Int64()) if cells.dtype.is_integer() else _cast(numbers, pl.Int64())
    _refuse(raw, column, cells.is_not_null() & (whole.is_null() | (whole != numbers).fill_null(True)), expected)
    return whole


def id_lists(raw: RawTable, column: str) -> pl.Series:
    """A column of lists of whole numbers, as List(Int64).

    Raises:
        UserError: the column holds anything else.
    """
    cells = raw.frame[column]
    if not isinstance(cells.dtype, pl.List) or not (cells.dtype.inner == pl.Null or cells.dtype.inner.is_integer()):
        raise UserError(f"{raw.path}: key {column!r}: found {cells.dtype}, expected a list of whole numbers")
    return cells.cast(pl.List(pl.Int64))


def constant(value: int, rows: int) -> pl.Series:
    """The same whole number in every row."""
    return pl.Series([value], dtype=pl.Int64).new_from_index(0, rows)


def place_among_equals(keys: pl.Series) -> pl.Series:
    """For each row how many rows above it have the same key: the turn, where the key is the session."""
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("key")
    return pl.DataFrame({"key": keys}).select(place=place)["place"]


def _cast(cells: pl.Series, dtype: pl.DataType) -> pl.Series:
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    elif not cells.dtype.is_numeric():  # a list, an object, a boolean: no number at all
        return pl.Series(cells.name, [None] * len(cells), dtype=dtype)
    return cells.cast(dtype, strict=False)


def _refuse(raw: RawTable, column: str, bad: pl.Series, expected: str) -> None:
    rows = bad.fill_null(True).arg_true()
    if len(rows):
        refuse_row(raw, column, int(rows[0]), expected)


def refuse_row(raw: RawTable, column: str, row: int, expected: str) -> NoReturn:
    """Raise a UserError that shows one cell of the source; rows are counted from 0, as in `source_row`."""
    cell = raw.frame[column][row]
    if isinstance(cell, pl.Series):
        cell = cell.to_list()
    found = "nothing" if cell is None else repr(cell)
    raise UserError(f"{raw.path}: data row {row} (from 0), column {column!r}: found {found}, expected {expected}")
