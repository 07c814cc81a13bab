"""A mix of recorded clients (ServeGen, Xiang et al., arXiv:2505.09999): each sends as often, as burstily and as much
as it was recorded to, and the service sees the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from ground.errors import UserError
from ground.spec import Spec
from traces.checks import check
from traces.streams import stream
from traces.synth.client_files import Client, read_clients
from traces.table import COLUMNS, Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FIELDS = {
    "language": ("input_tokens", "output_tokens"),
    "reason": ("input_tokens", "output_tokens"),
    "multimodal": ("text_tokens", "image_count", "image_tokens", "output_tokens"),
}
EMPTY = "no prompt or no output tokens drawn"
BEYOND = "beyond the number of requests asked for"


class ClientMix(Spec):
    """Which clients, which part of their recording, and how much of it.

    `rate` is the mean of all clients together over the time drawn; every client's rate is scaled alike. Without it
    the recorded rates stand.
    """

    folder: str  # relative to the folder of the spec
    model: str
    category: Literal["language", "reason", "multimodal"] = "language"
    start: float = Field(0.0, ge=0)  # seconds into the recording
    rate: PositiveFloat | None = None  # requests per second
    only: list[int] | None = Field(None, min_length=1)  # clients by number; without it all
    without_lengths: Literal["refuse", "leave out"] = "refuse"  # clients whose lengths were not published


def draw_clients(
    mix: ClientMix, duration: float, requests: int | None, seed: int, base_dir: Path, notes: dict[str, Any]
) -> Trace:
    """Draw what the clients send in `duration` seconds, at most the first `requests`.

    Each client draws arrivals and each of its token counts from streams of its own, so what one sends does not depend
    on which others there are. Token counts are independent of each other.

    Raises:
        UserError: the data cannot be read, a client's lengths are not known, the time lies outside the recording, or
            nothing is sent in it.
    """
    folder = base_dir / mix.folder
    clients = read_clients(folder, mix.category, mix.model, _FIELDS[mix.category])
    clients, left_out = _choose(mix, clients, folder)
    span = max(client.span for client in clients)
    end = mix.start + duration
    if end > span:
        raise UserError(f"{folder}: found a recording of {span:g} s, expected start + duration ({end:g} s) within it")
    expected = sum(_expected(client, mix.start, end) for client in clients)
    if not expected:
        raise UserError(f"{folder}: no client sends anything from {mix.start:g} to {end:g} s")
    factor = 1.0 if mix.rate is None else mix.rate * duration / expected

    drawn = pl.concat([_draw(client, mix, factor, end, seed) for client in clients])
    table = drawn.sort("arrival", maintain_order=True)
    kept = table.filter((pl.col("prompt_tokens") > 0) & (pl.col("output_tokens") > 0))
    dropped = {EMPTY: len(table) - len(kept), BEYOND: max(len(kept) - (requests or len(kept)), 0)}
    kept = kept.head(requests) if requests is not None else kept
    if kept.is_empty():
        raise UserError(f"{folder}: no request is drawn from {mix.start:g} to {end:g} s; raise rate or duration")
    kept = kept.with_columns(pl.col("arrival") - pl.col("arrival").first()).with_row_index("request_id")
    kept = kept.select(pl.col(name).cast(dtype) for name, (dtype, _) in COLUMNS.items() if name in kept.columns)
    notes |= {"clients": len(clients), "rate_scaled_by": factor, "token_counts": "drawn independently of each other"}
    if left_out:
        notes["clients_without_lengths_left_out"] = left_out
    trace = Trace(kept, "synth", str(folder), len(table), {why: n for why, n in dropped.items() if n}, notes)
    check(trace)
    return trace


def _choose(mix: ClientMix, clients: list[Client], folder: Path) -> tuple[list[Client], int]:
    """(the clients to draw, how many were left out because their lengths are not known)."""
    if mix.only is not None:
        unknown = set(mix.only) - {int(client.name) for client in clients}
        if unknown:
            raise UserError(f"{folder}: {mix.category}/{mix.model} has no client {min(unknown)}")
        clients = [client for client in clients if int(client.name) in mix.only]
    complete = [client for client in clients if not _missing(client, mix)]
    without = [client for client in clients if _missing(client, mix)]
    if without and (mix.without_lengths == "refuse" or not complete):
        share = sum(client.counts.sum() for client in without) / sum(client.counts.sum() for client in clients)
        raise UserError(
            f"{folder}: {len(without)} of {len(clients)} clients, first {without[0].name}, have no recorded "
            f"{_missing(without[0], mix)} ({share:.0%} of the requests); choose others with `only`, or draw without "
            "them with `without_lengths: leave out`"
        )
    return complete, len(without)


def _missing(client: Client, mix: ClientMix) -> str:
    return ", ".join(name for name in _FIELDS[mix.category] if name not in client.lengths)


def _expected(client: Client, start: float, end: float) -> float:
    """Requests that the client was recorded to send in that time, a window's spread evenly over it."""
    covered = np.minimum(client.starts + client.window, end) - np.maximum(client.starts, start)
    return float(client.counts @ np.maximum(covered, 0.0) / client.window)


def _draw(client: Client, mix: ClientMix, factor: float, end: float, seed: int) -> pl.DataFrame:
    """What one client sends from `mix.start` to `end`, on the recording's clock, in time order."""
    times: list[Floats] = [np.empty(0)]
    prompts: list[Ints] = [np.empty(0, dtype=np.int64)]
    outputs: list[Ints] = [np.empty(0, dtype=np.int64)]
    for window in np.flatnonzero((client.starts + client.window > mix.start) & (client.starts < end)):
        begin = float(client.starts[window])
        rng = stream(seed, f"{mix.category}/{mix.model} client {client.name} window {begin:g}")
        times.append(begin + _arrivals(client, int(window), factor, rng))
        prompt, output = _tokens(client, mix.category, begin, len(times[-1]), rng)
        prompts.append(prompt)
        outputs.append(output)
    table = pl.DataFrame(
        {
            "arrival": np.concatenate(times),
            "prompt_tokens": np.concatenate(prompts),
            "output_tokens": np.concatenate(outputs),
        }
    )
    within = (pl.col("arrival") >= mix.start) & (pl.col("arrival") < end)
    return table.filter(within).with_columns(model=pl.lit(mix.model), tenant=pl.lit(client.name))


def _arrivals(client: Client, window: int, factor: float, rng: np.random.Generator) -> Floats:
    """Arrivals in one window, in seconds from its begin, sorted and before its end.

    As many as were recorded, times `factor`; a fraction is one more with that probability. Their gaps follow the
    window's Gamma or Weibull shape and are scaled to fill the window: the recorded count says the mean gap exactly,
    and for a Gamma process this is its law given that count. (The fitted scale of a window with a handful of requests
    can be wrong by orders of magnitude.)
    """
    wanted = float(client.counts[window]) * factor
    size = int(np.floor(wanted + 1e-6))
    size += int(rng.random() < wanted - size)
    gaps = _relative_gaps(rng, bool(client.weibull[window]), float(client.shapes[window]), size + 1)
    times = client.window * (np.cumsum(gaps)[:-1] / gaps.sum())
    return np.minimum(times, client.window * (1 - 1e-9))


def _tokens(client: Client, category: str, begin: float, size: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(prompt, output) of `size` requests of the window that begins at `begin`; every image of a prompt is drawn."""

    def draw(name: str, size: int = size) -> Ints:
        return client.lengths[name].at(begin).quantiles(rng.random(size))

    output = draw("output_tokens")
    if category != "multimodal":
        return draw("input_tokens"), output
    images = draw("image_count")
    of_request = np.repeat(np.arange(size), images)
    pixels = np.bincount(of_request, draw("image_tokens", len(of_request)), size).astype(np.int64)
    return draw("text_tokens") + pixels, output


def _relative_gaps(rng: np.random.Generator, weibull: bool, shape: float, size: int) -> Floats:
    """Gaps up to a common factor, the largest 1: drawn as logarithms, since shapes near 0 leave the range of floats."""
    if weibull:
        logs = np.log(rng.standard_exponential(size)) / shape
    else:
        # Gamma(shape) = Gamma(shape + 1) · U^(1/shape)
        logs = np.log(rng.standard_gamma(shape + 1, size)) + np.log1p(-rng.random(size)) / shape
    gaps: Floats = np.exp(logs - logs.max())
    return gaps
