"""The steps of a fleet of several pools by cause: each pool's by its own step times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from calibrate.latency import StepLatency
from ground.errors import UserError
from sim.results.diagnosis.row_causes import RowCauses, row_causes
from sim.results.folder import Run


def row_causes_of_pools(run: Run, times: Mapping[str, StepLatency], *, simulated: bool) -> RowCauses:
    """As `row_causes`; `times` by the names of pools in the table of replicas.

    Raises:
        UserError: the run has no table of replicas, or none of these pools took a step.
    """
    if run.replicas is None:
        raise UserError(
            f"{run.name}: replicas.parquet is missing; expected the table of replicas, which names their pools"
        )
    found = []
    for pool, own in times.items():
        members = run.replicas.filter(pl.col("pool") == pool)["replica"]
        steps = run.steps.filter(pl.col("replica").is_in(members.to_list()))
        if len(steps):
            found.append(row_causes(replace(run, steps=steps), own, simulated=simulated))
    if not found:
        raise UserError(f"{run.name}: no replica of {', '.join(times)} took a step; expected the pools of the scenario")
    rows = pl.concat([part.rows for part in found])
    order = np.lexsort((rows["start"].to_numpy(), rows["replica"].to_numpy()))
    causes = dict.fromkeys(cause for part in found for cause in part.seconds)
    seconds = {
        cause: np.concatenate([part.seconds.get(cause, np.zeros(len(part.rows))) for part in found])[order]
        for cause in causes
    }
    told = [(part.explained, len(part.rows)) for part in found if part.explained is not None]
    explained = sum(share * count for share, count in told) / sum(count for _, count in told) if told else None
    return RowCauses(
        rows[order], seconds, explained, list(dict.fromkeys(note for part in found for note in part.notes))
    )
