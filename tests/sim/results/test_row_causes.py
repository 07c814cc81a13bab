"""A row of the steps table is taken apart into what it was made of."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from diagnosis_runs import Planted, simulated, step_latency, trace_of
from engine_workloads import configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import MODEL, calls, decode, dense, host, per_sequence, prefill

from calibrate.latency import StepLatency
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWorkSettings
from sim.results.diagnosis.causes import STEP_CAUSES
from sim.results.diagnosis.diagnosis import diagnose
from sim.results.diagnosis.row_causes import row_causes
from sim.results.tables import EVENTS

HOSTS = [None, None, HostWorkSettings(per_step=0.002, per_session=0.0005)]


class Asked(StepLatency):
    """Remembers the prompts of every step."""

    prompts: list[list[tuple[int, int]]]

    def step(self, prefills: Any, decodes: int, kv_tokens: int, spread: Any = None) -> float:
        if prefills:
            self.prompts.append(list(prefills))
        return super().step(prefills, decodes, kv_tokens, spread)


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), st.booleans(), st.sampled_from(HOSTS), st.booleans())
def test_rows_are_taken_apart_as_they_were_made(
    config: EngineConfig, trace: pl.DataFrame, overhead: bool, work: HostWorkSettings | None, leap: bool
) -> None:
    """By the law that the profile was made of, from the batches that the engine really ran."""
    if config.async_scheduling and (overhead or work):
        return  # see the test below
    times = step_latency(config, overhead=overhead)
    times.__class__, times.prompts = Asked, []  # type: ignore[attr-defined]
    run = simulated(trace, config, times, host=work, leap=leap)
    rows = row_causes(run, times, simulated=True)
    prompts = iter(times.prompts)  # type: ignore[attr-defined]
    zeros = np.zeros(len(rows.rows))
    layers, by_tokens, by_sequence = MODEL.layers, calls(MODEL, "dense"), calls(MODEL, "per_sequence")
    for index, row in enumerate(rows.rows.iter_rows(named=True)):
        chunks = next(prompts) if row["prefill_tokens"] else []
        decodes, steps = row["decode_seqs"], row["steps"]
        tokens, sequences = decodes + sum(new for new, _ in chunks), decodes + len(chunks)
        found = {cause: float(rows.seconds.get(cause, zeros)[index]) for cause in STEP_CAUSES}
        if not tokens:
            continue  # copies alone
        token_wise = by_tokens * dense(tokens) * decodes / tokens + by_sequence * per_sequence(sequences) * (
            decodes / sequences
        )
        assert found["decode_weights"] == pytest.approx(steps * token_wise, rel=1e-9)
        contexts = [row["kv_tokens"] + i * decodes for i in range(steps)]
        reads = sum(layers * decode(decodes, kv / decodes) for kv in contexts) if decodes else 0.0
        assert found["decode_kv"] == pytest.approx(reads, rel=1e-6, abs=1e-9)
        whole = by_tokens * dense(tokens) + by_sequence * per_sequence(sequences) - token_wise
        own = whole + layers * sum(prefill(*chunk) for chunk in chunks) if chunks else 0.0
        prompt_seconds = found["prefill"] + found["recompute"] + found["eviction_misses"]
        # The surface between two chunks of the grid is linear in work, as the law is; below it, it is not quite.
        if all(new >= 16 for new, _ in chunks):
            assert prompt_seconds == pytest.approx(own, rel=1e-6, abs=1e-9)
        if overhead and work is None:
            assert found["host"] == pytest.approx(steps * host(sequences, tokens), rel=1e-6)


def test_one_kernel_is_shared_by_what_each_takes_alone() -> None:
    """A prompt arrives while others decode, and the profile's kernel serves both."""
    config = EngineConfig(kv_blocks=400)
    times = step_latency(config, mixed=True)
    run = simulated(trace_of(6, gap=0.001, prompt=200, output=40), config, times)
    rows = row_causes(run, times, simulated=True)
    both = rows.rows.with_row_index().filter((pl.col("prefill_tokens") > 0) & (pl.col("decode_seqs") > 0))
    assert len(both) > 2
    for row in both.iter_rows(named=True):
        index, decodes, tokens = row["index"], row["decode_seqs"], row["decode_seqs"] + row["prefill_tokens"]
        sequences = decodes + row["prefill_seqs"]
        kernels = calls(MODEL, "dense") * dense(tokens) + calls(MODEL, "per_sequence") * per_sequence(sequences)
        attention = row["end"] - row["start"] - kernels
        alone = decode(decodes, row["kv_tokens"] / decodes), row["prefill_seqs"] * prefill(200, 0)
        share = attention * alone[0] / sum(alone)
        assert rows.seconds["decode_kv"][index] == pytest.approx(share, rel=1e-6)
        whole = rows.seconds["decode_weights"][index] + rows.seconds["decode_kv"][index]
        assert rows.seconds["prefill"][index] == pytest.approx(row["end"] - row["start"] - whole, rel=1e-6)


def test_the_host_is_hidden_behind_the_device() -> None:
    """One sequence, whose context makes the kernels outlast the host from some step on."""
    config = EngineConfig(kv_blocks=4000, async_scheduling=True, max_num_batched_tokens=8192)
    times = step_latency(config, overhead=True)
    kernels = times.decode_law(1)
    assert kernels is not None
    least = kernels.fixed + kernels.attention(2000)  # that the host takes: as long as a step half-way
    work = HostWorkSettings(per_step=least - host(1, 1))
    run = simulated(trace_of(1, gap=1.0, prompt=64, output=4000), config, times, host=work)
    attributed = diagnose(run, times, measured=False).attributed
    decoding = [kernels.fixed + kernels.attention(64 + i) for i in range(3999)]
    prompt = calls(MODEL, "dense") * dense(64) + calls(MODEL, "per_sequence") * per_sequence(1)
    prompt += MODEL.layers * prefill(64, 0)
    shown = sum(max(0.0, least - seconds) for seconds in [prompt, *decoding])
    assert 0 < shown < attributed["e2e"][0] / 2
    assert attributed["host"][0] == pytest.approx(shown, rel=1e-6)


def test_padding_is_prefill_beside_decodes_of_the_same_kernel() -> None:
    """Prompts computed at a padded length, while others decode in the kernel that serves both."""
    config = EngineConfig(kv_blocks=400)
    times = step_latency(config, mixed=True)
    trace, padding = trace_of(6, gap=0.001, prompt=200, output=40), 0.05
    run = simulated(trace, config, times, sources=lambda replica, events: [Planted(events, replica, "graph", padding)])
    apart = row_causes(run, times, simulated=True)
    run.events = run.events.with_columns(kind=pl.lit("padding"))
    rows = row_causes(run, times, simulated=True)
    both = ((apart.rows["prefill_tokens"] > 0) & (apart.rows["decode_seqs"] > 0)).to_numpy()
    assert both.any() and "graph" not in rows.seconds
    assert rows.seconds["prefill"] == pytest.approx(apart.seconds["prefill"] + apart.seconds["graph"])
    for cause in ("decode_weights", "decode_kv"):
        assert rows.seconds[cause] == pytest.approx(apart.seconds[cause]), cause


def test_padding_that_the_host_hides_is_no_host_work() -> None:
    """The host outlasts the padded prompt: it has what the kernels, padding among them, leave of the step."""
    config = EngineConfig(kv_blocks=400, async_scheduling=True)
    times = step_latency(config)
    run = simulated(trace_of(5, gap=0.5, prompt=64, output=3), config, times, host=HostWorkSettings(per_step=0.1))
    apart = row_causes(run, times, simulated=True)
    prompts = (apart.rows["prefill_tokens"] > 0).to_numpy()
    padding = np.where(prompts, 0.02, 0.0)
    events = [
        dict.fromkeys(EVENTS) | {"time": start, "replica": 0, "kind": "padding", "seconds": 0.02}
        for start in apart.rows["start"].to_numpy()[prompts]
    ]
    run.events = pl.concat([run.events, pl.DataFrame(events, schema=EVENTS)])
    rows = row_causes(run, times, simulated=True)
    assert prompts.sum() == 5
    assert rows.seconds["prefill"] == pytest.approx(apart.seconds["prefill"] + padding)
    assert rows.seconds["host"] == pytest.approx(apart.seconds["host"] - padding)
