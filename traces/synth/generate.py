"""A synthetic trace from a spec and a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ground.errors import UserError
from traces.checks import check
from traces.streams import stream
from traces.synth.clients import draw_clients
from traces.synth.prefixes import chain_ids
from traces.synth.sessions import Sessions, first_of_session, prompt_lengths
from traces.synth.spec import Lengths, SynthSpec
from traces.table import COLUMNS, Trace

Ints = NDArray[np.int64]


def generate(spec: SynthSpec, seed: int, *, base_dir: Path = Path()) -> Trace:
    """Draw the trace of `spec`; the same spec, seed and resampled file give the same table.

    Every part draws from its own stream, so that changing the lengths leaves the arrivals as they were. Requests lie
    in order of session start, turn by turn. Prefix ids are given where the spec has prefixes or sessions.
    `base_dir` is where the path of a resampled file or of client data starts.

    Raises:
        UserError: no request falls into `duration`, a session's first turn exceeds its context limit, or a file cannot
            be read.
    """
    if spec.clients is not None:
        assert spec.duration is not None
        notes = {"spec": spec.model_dump(mode="json", exclude_none=True), "seed": seed}
        return draw_clients(spec.clients, spec.duration, spec.requests, seed, base_dir, notes)
    assert spec.arrivals is not None and spec.lengths is not None
    starts = spec.arrivals.draw(stream(seed, "arrivals"), spec.requests, spec.duration)
    if not len(starts):
        raise UserError(f"synth: no arrival within duration = {spec.duration} s; raise the rate or the duration")
    starts = starts - starts[0]
    session = np.arange(len(starts))
    if spec.sessions is not None:
        session = np.repeat(session, spec.sessions.turns.draw(stream(seed, "turns"), len(session)))
    new, output = _draw_lengths(spec.lengths, seed, len(session), base_dir)
    if spec.labels is not None:
        new, output = spec.labels.lengths(seed, session, new, output)
    group, prefix_tokens = (
        (np.zeros(len(starts), dtype=np.int64), np.zeros(1, dtype=np.int64))
        if spec.prefixes is None
        else spec.prefixes.draw(seed, len(starts))
    )
    prompt = prompt_lengths(session, new, output, prefix_tokens[group[session]])

    kept = np.arange(len(session))
    if spec.sessions is not None and spec.sessions.context_limit is not None:
        kept = kept[_within(spec.sessions.context_limit, session, prompt + output)]
    kept = kept[: spec.requests]
    session, prompt, output = session[kept], prompt[kept], output[kept]

    columns: dict[str, object] = {
        "request_id": np.arange(len(kept)),
        "arrival": starts[session],
        "prompt_tokens": prompt,
        "output_tokens": output,
    }
    if spec.sessions is not None:
        columns |= _session_columns(spec.sessions, session, starts, seed)
    if spec.labels is not None:
        columns |= spec.labels.draw(seed, session)
    if spec.sessions is not None or spec.prefixes is not None:
        columns["prefix_ids"] = chain_ids(prompt + output, session, group, prefix_tokens, spec.block_tokens)
        columns["prefix_block_tokens"] = np.full(len(kept), spec.block_tokens)
    requests = pl.DataFrame(columns, schema_overrides={name: COLUMNS[name][0] for name in columns})
    notes = {"spec": spec.model_dump(mode="json", exclude_none=True), "seed": seed}
    trace = Trace(requests, "synth", "synth", len(requests), {}, notes)
    check(trace)
    return trace


def _draw_lengths(lengths: Lengths, seed: int, size: int, base_dir: Path) -> tuple[Ints, Ints]:
    if lengths.resample is not None:
        pairs = lengths.resample.draw(stream(seed, "length pairs"), size, base_dir)
        return pairs[:, 0], pairs[:, 1]
    assert lengths.prompt is not None and lengths.output is not None
    return (
        lengths.prompt.draw(stream(seed, "prompt tokens"), size),
        lengths.output.draw(stream(seed, "output tokens"), size),
    )


def _within(limit: int, session: Ints, tokens: Ints) -> NDArray[np.bool_]:
    """Rows that fit; `tokens` grows from turn to turn, so what is kept of a session is its beginning."""
    fits = tokens <= limit
    too_long = np.flatnonzero(first_of_session(session) & ~fits)
    if len(too_long):
        raise UserError(
            f"synth: sessions.context_limit: the first turn of session {session[too_long[0]]} has "
            f"{tokens[too_long[0]]} tokens, expected at most {limit}; bound the lengths with `high`"
        )
    return fits


def _session_columns(spec: Sessions, session: Ints, starts: NDArray[np.float64], seed: int) -> dict[str, pl.Series]:
    row = np.arange(len(session))
    first = first_of_session(session)
    turn = row - np.maximum.accumulate(np.where(first, row, 0))
    think = spec.think_time.draw(stream(seed, "think time"), len(session))
    released = pl.Series(~first)
    table = pl.DataFrame(
        {"start": starts[session], "before": row - 1, "think": think, "turn": turn, "session": session}
    )
    return table.select(
        arrival=pl.when(~released).then("start"),
        session=pl.col("session").cast(pl.String),
        turn=pl.col("turn"),
        parent=pl.when(released).then("before"),
        think_time=pl.when(released).then("think"),
    ).to_dict(as_series=True)
