"""Traces of a few requests, written out."""

import polars as pl


def trace_of(*requests: tuple[float, int, int]) -> pl.DataFrame:
    """Each (arrival, prompt tokens, output tokens)."""
    arrival, prompt, output = zip(*requests, strict=True)
    columns = {"arrival": arrival, "prompt_tokens": prompt, "output_tokens": output}
    return pl.DataFrame({"request_id": range(len(requests)), **columns})
