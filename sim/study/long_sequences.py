"""What a growing prompt costs an engine: computing, exchanging, and what of the exchange can be hidden.

One prompt alone, in one step, on an engine of several tensor-parallel ranks; and in chunks over the stages of a
pipeline, several chunks at once. Both by the step times of the simulated engine and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.overlap import OverlapLatency
from calibrate.parallelism import Parallelism
from calibrate.pipeline_latency import PipelineLatency
from calibrate.profile import Profile
from sim.engine.pipeline_leap import Stages
from sim.study.interconnect import engine_collectives
from sim.study.scenario import EngineSettings

LENGTHS = tuple(2**k for k in range(7, 18))

_COLUMNS = {
    "tokens": pl.Int64,
    "compute": pl.Float64,  # kernels, attention among them
    "communication": pl.Float64,  # which nothing hides where a step is computed whole
    "halves_compute": pl.Float64,  # the same in two halves
    "halves_exposed": pl.Float64,  # communication that the other half does not hide
    "whole": pl.Float64,  # both, computed whole
    "halves": pl.Float64,  # both, in halves
    "overtakes": pl.Boolean,  # whether communication takes longer than computing
}


@dataclass(frozen=True)
class Growth:
    """`rows` are in seconds, by `tokens`. `overtakes_at`: the first length at which communication takes longer than
    computing, None: at none of them. `falls_behind_at`: the first after such a length at which it no longer does."""

    rows: pl.DataFrame
    overtakes_at: int | None
    falls_behind_at: int | None


def growth(settings: EngineSettings, model: ModelShape, profile: Profile, lengths: Sequence[int] = LENGTHS) -> Growth:
    """A prompt of each length, alone in a step.

    Communication grows with tokens, and so do the kernels that work on each token; attention grows with their square.
    So communication can overtake where links are slow or kernels wait for memory, and attention leaves it behind again.

    Raises:
        UserError: the profile does not fit, or nobody knows the collectives.
    """
    collectives, _ = engine_collectives(settings, profile)
    parallelism = Parallelism(settings.tensor_parallel, custom_all_reduce=not settings.disable_custom_all_reduce)
    plain = StepLatency(profile, model, parallelism=parallelism, collectives=collectives)
    halved = OverlapLatency(
        profile, model, parallelism=parallelism, min_tokens=settings.overlap_min_tokens, collectives=collectives
    )
    rows = []
    for tokens in lengths:
        attention = plain.attention.mixed([(tokens, 0)], 0, 0, None, None)[0]
        compute, exchange = _parts(plain, tokens, attention)
        in_halves, exposed = _parts(halved, tokens, attention)
        whole = compute + exchange
        rows.append((tokens, compute, exchange, in_halves, exposed, whole, in_halves + exposed, exchange > compute))
    table = pl.DataFrame(rows, schema=_COLUMNS, orient="row")
    over = [tokens for tokens, *_, overtakes in rows if overtakes]
    behind = [tokens for tokens, *_, overtakes in rows if over and tokens > over[0] and not overtakes]
    return Growth(table, over[0] if over else None, behind[0] if behind else None)


def _parts(times: StepLatency, tokens: int, attention: float) -> tuple[float, float]:
    """Seconds of a prompt's kernels, and of what is exchanged without being hidden."""
    exchange = times.exchange.hidden_states(tokens) + times.exchange.logits(1)
    experts = 0.0 if times.experts is None else times.experts(tokens)
    return times.dense(tokens) + times.per_sequence(1) + attention + experts, exchange


def in_chunks(times: PipelineLatency, tokens: int, chunk: int) -> tuple[float, float]:
    """Seconds until a prompt has passed all stages in chunks of so many tokens, each chunk behind the one before it;
    and the share of the stages' time that is a bubble: while others fill, drain, or have the longer chunk."""
    stages, end, busy = Stages(len(times.layers)), 0.0, 0.0
    for start in range(0, tokens, chunk):
        new = min(chunk, tokens - start)
        seconds = times.stages([(new, start)], 0, 0)
        _, end = stages.run(0.0, seconds, times.sends(new, 0))
        busy += sum(seconds)
    return end, 1.0 - busy / (end * len(times.layers))


def chunk_table(times: PipelineLatency, tokens: int, chunks: Sequence[int]) -> pl.DataFrame:
    """`in_chunks` of one prompt for each size of chunk: tokens, chunk, seconds, bubble."""
    rows = [(tokens, chunk, *in_chunks(times, tokens, chunk)) for chunk in chunks]
    return pl.DataFrame(rows, schema=["tokens", "chunk", "seconds", "bubble"], orient="row")
