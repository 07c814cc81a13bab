"""The requests of a trace, each made into an object when its time comes: a long trace is not held as objects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from sim.engine.request import Request


class RequestRows:
    """Rows of a request table (`traces.table`), kept as columns; `make` makes the request of a row.

    A column `adapter`, where there is one, names those of the engine's adapters (`sim.fleet.weights.adapters`).
    `tenant` and `deadline` are for the scheduling policies that ask for them.
    """

    def __init__(self, rows: pl.DataFrame) -> None:
        count = len(rows)

        def column(name: str, default: float) -> np.ndarray:
            if name not in rows.columns:
                return np.broadcast_to(default, count)
            return rows[name].fill_null(default).to_numpy()

        self._count = count
        self._request_id = rows["request_id"].to_numpy()
        self._arrival = column("arrival", 0.0)
        self._prompt_tokens = rows["prompt_tokens"].to_numpy()
        self._output_tokens = rows["output_tokens"].to_numpy()
        self._block_tokens = column("prefix_block_tokens", 16)
        self._priority = column("priority", 0)
        self._session = rows["session"] if "session" in rows.columns else None
        self._adapter = rows["adapter"] if "adapter" in rows.columns else None
        self._tenant = rows["tenant"] if "tenant" in rows.columns else None
        self._deadline = column("deadline", math.inf) if "deadline" in rows.columns else None
        self._ids: np.ndarray | None = None
        if "prefix_ids" in rows.columns:
            self._ids, self._ends = _flat(rows["prefix_ids"])

    def __len__(self) -> int:
        return self._count

    def make(self, row: int) -> Request:
        ids: Any = ()
        if self._ids is not None:
            ids = self._ids[self._ends[row - 1] if row else 0 : self._ends[row]].tolist()
        return Request(
            self._request_id.item(row),
            self._arrival.item(row),
            self._prompt_tokens.item(row),
            self._output_tokens.item(row),
            ids,
            self._block_tokens.item(row),
            self._priority.item(row),
            None if self._session is None else self._session[row],
            None if self._adapter is None else self._adapter[row],
            None if self._tenant is None else self._tenant[row],
            math.inf if self._deadline is None else self._deadline.item(row),
        )


class LaterTurns:
    """The requests that another one's end releases."""

    def __init__(self, requests: pl.DataFrame) -> None:
        if "parent" not in requests.columns:
            requests = requests.head(0).with_columns(parent=pl.lit(None, pl.Int64))
        later = requests.filter(pl.col("arrival").is_null()).sort("parent", maintain_order=True)
        self._rows = RequestRows(later)
        self._parent = later["parent"].to_numpy()
        think = pl.col("think_time").fill_null(0.0) if "think_time" in later.columns else pl.lit(0.0)
        self._think = later.select(think.alias("think"))["think"].to_numpy()

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, request_id: int) -> list[tuple[Request, float]]:
        """Those that this request releases, each with its think time."""
        turns = []
        row = int(self._parent.searchsorted(request_id))
        while row < len(self._parent) and self._parent[row] == request_id:
            turns.append((self._rows.make(row), self._think.item(row)))
            row += 1
        return turns


def _flat(lists: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """All elements one after the other, and where those of each row end."""
    ends = np.cumsum(lists.list.len().fill_null(0).to_numpy())
    return lists.explode(keep_nulls=False, empty_as_null=False).to_numpy(), ends
