"""Collects the replicas table: when each replica was asked for, was ready and was given back."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from sim.results.energy import ReplicaPower
from sim.results.tables import REPLICAS


@dataclass
class _Row:
    pool: str
    site: str | None
    gpus: int
    gpu_hour_price: float | None
    kv_blocks: int | None
    requested: float
    ready: float | None = None
    ended: float | None = None
    why: str | None = None


class ReplicaRecorder:
    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self.powers: list[ReplicaPower | None] = []  # what each draws, by number; None: not known

    def requested(
        self,
        time: float,
        pool: str,
        *,
        site: str | None,
        gpus: int,
        gpu_hour_price: float | None,
        kv_blocks: int | None = None,
        power: ReplicaPower | None = None,
    ) -> int:
        """A replica was asked for; returns its number, which no other replica ever has."""
        self.powers.append(power)
        self._rows.append(_Row(pool, site, gpus, gpu_hour_price, kv_blocks, time))
        return len(self._rows) - 1

    def ready(self, replica: int, time: float) -> None:
        """It takes requests from now on."""
        self._rows[replica].ready = time

    def ended(self, replica: int, time: float, why: str) -> None:
        """It is there no more, and costs nothing."""
        self._rows[replica].ended, self._rows[replica].why = time, why

    def table(self) -> pl.DataFrame:
        """With the columns of `tables.REPLICAS`, in order of the replicas."""
        rows = [{"replica": number, **vars(row)} for number, row in enumerate(self._rows)]
        return pl.DataFrame(rows, schema=REPLICAS)
