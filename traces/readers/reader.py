"""What a reader is: a name, a line for the help, how to recognise its files, how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from traces.readers.raw import Kind, RawTable
from traces.table import Trace


@dataclass(frozen=True)
class Reader:
    """One public trace format.

    `kinds` and `recognises` (given the CSV header, the JSON keys or the Parquet columns) must let at most one reader
    claim a file; where two formats have the same names, `accepts` looks at the types. `read` makes the canonical trace
    or raises a UserError that names the row.
    """

    name: str
    summary: str
    kinds: tuple[Kind, ...]
    recognises: Callable[[frozenset[str]], bool]
    read: Callable[[RawTable], Trace]
    accepts: Callable[[RawTable], bool] = lambda raw: True

    def claims(self, raw: RawTable) -> bool:
        return raw.kind in self.kinds and self.recognises(raw.fields) and self.accepts(raw)
