"""Which requests of a trace are for adapters of the model that an engine serves."""

import polars as pl

from ground.errors import UserError


def with_adapters(requests: pl.DataFrame, base: str) -> pl.DataFrame:
    """The same requests with a column `adapter`: the `model` they ask for where it is not `base`, null elsewhere.

    Raises:
        UserError: no request names a model.
    """
    if "model" not in requests.columns or not requests["model"].count():
        raise UserError("engine.max_loras: found a trace that names no model, expected adapters in its column model")
    return requests.with_columns(adapter=pl.when(pl.col("model") != base).then(pl.col("model")))
