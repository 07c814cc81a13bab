"""What the seconds of steps went into, for many rows of a steps table at once.

The same laws as `StepLatency.step`, taken apart. A row of the table holds the sums of its batch and not every length in
it, so what depends on each length is an estimate: the attention of prompts (as if all chunks of a step were equally
long, with nothing cached) and that of decoding sequences of unequal length (as if they were equal). All else is exact.
Engines in lock-step are taken to share a row's work evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibrate.curve import Curve
from calibrate.latency import StepLatency


@dataclass(frozen=True)
class StepRows:
    """Columns of a steps table, each of shape (rows,): `steps` equal steps, of which the first reads `kv_tokens`.

    `drafts`: tokens that the decoding sequences verify beyond one each; None: nobody speculates. Attention is then
    taken as if they were not there.
    """

    steps: np.ndarray
    prefill_seqs: np.ndarray
    prefill_tokens: np.ndarray
    decode_seqs: np.ndarray
    kv_tokens: np.ndarray
    drafts: np.ndarray | None = None


@dataclass(frozen=True)
class StepParts:
    """Seconds of all steps of a row, each of shape (rows,).

    Attributes:
        decode_weights: kernels over tokens and sequences, the part of the decoding ones; padding goes with its side.
        prefill_weights: the part of the prompts.
        communication: what ranks and engines exchange.
        decode_attention: of decoding sequences, as if they were equally long.
        prefill_attention: of prompts, as if they were equally long and nothing of them was cached.
        host: the host's part, hidden behind the kernels or not.
    """

    decode_weights: np.ndarray
    prefill_weights: np.ndarray
    communication: np.ndarray
    decode_attention: np.ndarray
    prefill_attention: np.ndarray
    host: np.ndarray


def step_parts(times: StepLatency, rows: StepRows) -> StepParts:
    """Seconds of every row's parts. None of it is counted in `times.extrapolated`."""
    engines = times.parallelism.data
    steps, empty = rows.steps.astype(np.float64), rows.prefill_tokens + rows.decode_seqs == 0
    prefill_tokens, prefill_seqs, decodes, kv_tokens = (
        -(-column.astype(np.int64) // engines)
        for column in (rows.prefill_tokens, rows.prefill_seqs, rows.decode_seqs, rows.kv_tokens)
    )
    drafts = np.zeros_like(decodes) if rows.drafts is None else rows.drafts.astype(np.int64)
    tokens, sequences = prefill_tokens + decodes + drafts, prefill_seqs + decodes + drafts
    padded = np.where(
        prefill_tokens + drafts > 0,
        _each(lambda n: times.computed_tokens(n, prefills=True), tokens),
        _each(lambda n: times.computed_tokens(n, prefills=False), tokens),
    ).astype(np.int64)

    exchange, experts = times.exchange, times.experts
    communication = _each(exchange.hidden_states, padded) + _each(exchange.logits, sequences)
    by_tokens, by_sequences = _each(times.dense, padded), _each(times.per_sequence, sequences)
    if experts is not None:
        by_tokens = by_tokens + _each(lambda n: experts(n * engines), padded)
        communication = communication + _each(lambda n: exchange.experts(n * engines), padded)
    if times.varies:
        by_tokens = by_tokens + _of_pairs(times.varying, prefill_tokens, decodes)
    token_share = prefill_tokens / np.maximum(tokens, 1)
    sequence_share = prefill_seqs / np.maximum(sequences, 1)
    prefill_weights = by_tokens * token_share + by_sequences * sequence_share

    working = np.where(empty, 0.0, steps)
    return StepParts(
        decode_weights=working * (by_tokens + by_sequences - prefill_weights),
        prefill_weights=working * prefill_weights,
        communication=working * communication,
        decode_attention=_decode_attention(times, decodes, kv_tokens, rows.steps),
        prefill_attention=_prefill_attention(times, prefill_tokens, prefill_seqs) * steps,
        host=working * _host(times, sequences - drafts, tokens - sequences + drafts),
    )


def sum_along(curve: Curve, first: np.ndarray, stride: int, steps: np.ndarray) -> np.ndarray:
    """Sums of a curve at `steps` points from `first` on, `stride` apart; all of shape (rows,), exact in every cell."""
    lower, values, slopes = np.array(curve.xs), np.array(curve.ys), np.array(curve.slopes)
    first = first.astype(np.float64)
    cell = np.maximum(np.searchsorted(lower, first, side="right") - 1, 0)
    last = np.maximum(np.searchsorted(lower, first + (steps - 1) * stride, side="right") - 1, 0)
    # In one cell the mean is the value half-way.
    sums = steps * (values[cell] + slopes[cell] * (first + (steps - 1) * stride / 2 - lower[cell]))
    crossing = np.flatnonzero(last > cell)
    if crossing.size:
        start, count = first[crossing], steps[crossing]
        total, done = np.zeros(crossing.size), np.zeros(crossing.size)
        for index in range(len(lower)):
            behind = (
                np.clip(np.ceil((lower[index + 1] - start) / stride), done, count) if index + 1 < len(lower) else count
            )
            own = behind - done
            total += own * (values[index] + slopes[index] * (start + (done + (own - 1) / 2) * stride - lower[index]))
            done = behind
        sums[crossing] = total
    return sums


def _each(law: Callable[[int], float], numbers: np.ndarray) -> np.ndarray:
    """A law of one count at each of `numbers`, asked once for each that occurs."""
    if not len(numbers):
        return np.zeros(0)
    seconds = np.zeros(int(numbers.max()) + 1)
    for number in np.flatnonzero(np.bincount(numbers)).tolist():
        seconds[number] = law(number)
    return seconds[numbers]


def _decode_attention(times: StepLatency, decodes: np.ndarray, kv_tokens: np.ndarray, steps: np.ndarray) -> np.ndarray:
    seconds = np.zeros(len(decodes))
    order = np.argsort(decodes, kind="stable")
    counts, begins = np.unique(decodes[order], return_index=True)
    for count, own in zip(counts.tolist(), np.split(order, begins[1:]), strict=True):
        if count:
            seconds[own] = sum_along(times.attention_of_decodes(count), kv_tokens[own], count, steps[own])
    return seconds


def _prefill_attention(times: StepLatency, tokens: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    seconds = np.zeros(len(tokens))
    some = np.flatnonzero(tokens)
    number = np.maximum(sequences[some], 1)
    seconds[some] = number * _each(lambda n: times.prefill(n, 0), -(-tokens[some] // number))
    return seconds


def _host(times: StepLatency, sequences: np.ndarray, extra: np.ndarray) -> np.ndarray:
    return _of_pairs(times.host, sequences, np.maximum(extra, 0))


def _of_pairs(law: Callable[[int, int], float], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A law of two counts, asked once for each pair that occurs."""
    width = int(second.max(initial=0)) + 1
    pairs, place = np.unique(first * width + second, return_inverse=True)
    return np.array([law(*divmod(pair, width)) for pair in pairs.tolist()], dtype=np.float64)[place]
