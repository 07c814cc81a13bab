"""Tables of measurements in CSV files: read, and checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ground.errors import UserError


def read_csv(path: Path, expected: str = "") -> pl.DataFrame:
    """Read a table.

    Args:
        expected: what the user should have named, if the file is not there.

    Raises:
        UserError: it is not there, or not a CSV file.
    """
    try:
        return pl.read_csv(path, infer_schema_length=None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{expected and '; expected ' + expected}") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error


def check_numbers(table: pl.DataFrame, path: Path, columns: Sequence[str]) -> None:
    """Raises UserError: a column is missing or not of numbers."""
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path}: column {column} is missing; found {', '.join(table.columns)}")
        if not table[column].dtype.is_numeric():
            raise UserError(f"{path}: column {column} is {table[column].dtype}; expected numbers")
