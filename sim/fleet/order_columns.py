"""What a scheduling policy asks of each request beyond its size, taken from the trace."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from ground.errors import UserError


def with_order_columns(requests: pl.DataFrame, policies: Collection[str], ttft: float | None) -> pl.DataFrame:
    """The same requests with those of the columns `tenant` and `deadline` that the policies ask for, and no other.

    A request without a deadline is due `ttft` seconds after its arrival, the scenario's `slo.ttft`, where there is one.

    Raises:
        UserError: no request has what a policy asks for.
    """
    if "fair_share" not in policies:
        requests = requests.drop("tenant", strict=False)
    elif "tenant" not in requests.columns or not requests["tenant"].count():
        raise UserError(
            "engine.scheduling_policy is fair_share: found a trace that names no tenant, expected who sent each "
            "request in its column tenant"
        )
    if "earliest_deadline" not in policies:
        return requests.drop("deadline", strict=False)
    if "deadline" not in requests.columns:
        requests = requests.with_columns(deadline=pl.lit(None, pl.Float64))
    requests = requests.with_columns(pl.col("deadline").fill_null(pl.lit(ttft, pl.Float64)))
    if not requests["deadline"].count():
        raise UserError(
            "engine.scheduling_policy is earliest_deadline: found a trace without deadlines and no slo.ttft, expected "
            "one of them"
        )
    return requests
