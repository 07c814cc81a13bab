"""Equal tokens have other keys and values in another model, so the prefix ids of two models must never be equal."""

import polars as pl


def tell_models_apart(requests: pl.DataFrame) -> pl.DataFrame:
    """The same requests, where those of different models (column `model`) have no prefix id in common.

    Within a model ids are equal where they were. A request that names no model is of one more model, its own.
    """
    if not {"model", "prefix_ids"} <= set(requests.columns) or requests["model"].n_unique() < 2:
        return requests
    # The number of an id among all, times how many models there are, leaves room for the number of the model.
    count = requests["model"].n_unique()
    told = (
        requests.select("prefix_ids", model=pl.col("model").fill_null("").rank("dense"))
        .with_row_index("row")
        .explode("prefix_ids")
        .drop_nulls("prefix_ids")
        .with_columns(prefix_ids=pl.col("prefix_ids").rank("dense").cast(pl.Int64) * count + pl.col("model"))
        .group_by("row", maintain_order=True)
        .agg("prefix_ids")
    )
    rows = requests.drop("prefix_ids").with_row_index("row")
    return rows.join(told, on="row", how="left", maintain_order="left").drop("row").select(requests.columns)
