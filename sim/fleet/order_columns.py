"""What a scheduling policy asks of each request beyond its size, taken from the trace."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from ground.errors import UserError


def with_order_columns(requests: pl.DataFrame, policies: Collection[str], ttft: float | None) -> pl.DataFrame:
    """The same requests with those of the columns `tenant` and `deadline` that the policies ask for, and no other.

    Where nobody has a deadline everybody is due `ttft` seconds after his arrival, the scenario's `slo.ttft`. The two do
    not mix: a deadline is of the last token, the limit of the first.

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
    if "deadline" in requests.columns and requests["deadline"].count():
        return requests
    if ttft is None:
        raise UserError(
            "engine.scheduling_policy is earliest_deadline: found a trace without deadlines and no slo.ttft, expected "
            "one of them"
        )
    return requests.with_columns(deadline=pl.lit(ttft, pl.Float64))
