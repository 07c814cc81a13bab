"""The workbench's batches, the recompute benchmark on it, and the GPU timer's spin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.decoder import SequenceInput
from calibrate.microbench import timing
from calibrate.microbench.grid import StepShape, cpu_grid, cuda_grid, kernels_only, quick_grid, short_cuda_grid
from calibrate.microbench.measure import MICROBENCHES
from calibrate.microbench.recompute import token_costs
from calibrate.microbench.timing import LapTimer
from calibrate.microbench.workbench import Workbench
from calibrate.model import load_model

MODEL = replace(load_model("tiny-llama"), layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=50)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    torch.set_num_threads(1)
    return Workbench(MODEL, quick_grid(), "cpu", 16, seed=0)


lengths = st.lists(st.integers(0, 300), max_size=8)


@given(lengths, st.lists(st.tuples(st.integers(1, 100), st.integers(0, 200)), max_size=3))
def test_sequences_of_a_batch_share_no_block(
    bench: Workbench, contexts: list[int], prefills: list[tuple[int, int]]
) -> None:
    batch = bench.batch(StepShape(prefills, contexts))
    assert [(len(one.tokens), one.start) for one in batch] == [*((1, context) for context in contexts), *prefills]
    blocks = [block for one in batch for block in one.blocks]
    assert len(set(blocks)) == len(blocks)
    for one in batch:
        assert len(one.blocks) == -(-(one.start + len(one.tokens)) // 16)


def test_a_batch_larger_than_the_pool_shares_blocks_between_sequences_only(bench: Workbench) -> None:
    pool = bench.decoder.caches[0].shape[0] // 16
    batch = bench.batch(StepShape([], [pool * 16 // 2] * 3))
    for one in batch:
        assert len(set(one.blocks)) == len(one.blocks)
    assert len({block for one in batch for block in one.blocks}) < sum(len(one.blocks) for one in batch)


def test_recomputing_computes_everything_and_the_cache_one_token(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[int, int]] = set()
    step = bench.decoder.step

    def watched(batch: list[SequenceInput]) -> list[int]:
        asked.update((len(one.tokens), one.start) for one in batch)
        return step(batch)

    monkeypatch.setattr(bench.decoder, "step", watched)
    costs = token_costs(bench, prompt=8, tokens=[1, 40], budget=0.001)
    # Token 1 comes out of the prompt; token 40 stands behind it and 39 others.
    assert asked == {(1, 8), (8, 0), (1, 47), (47, 0)}
    assert [cost.token for cost in costs] == [1, 40] and all(cost.cached > 0 and cost.recomputed > 0 for cost in costs)


@pytest.mark.parametrize("grid", [cpu_grid(), cuda_grid(), short_cuda_grid()])
def test_a_second_model_is_measured_by_its_kernels_alone(grid: Any) -> None:
    classes = {
        bench.KERNEL_CLASS
        for bench in MICROBENCHES
        if bench.points(kernels_only(grid)) or bench.held_out(kernels_only(grid))
    }
    assert {"dense", "per_sequence", "attention"} <= classes and not {"step", "graph", "copy"} & classes


def test_the_short_grid_holds_points_out_inside_itself() -> None:
    grid = short_cuda_grid()
    on_grid = {(chunk, cached) for chunk in grid.chunks for cached in grid.prefill_contexts}
    assert not {tuple(point) for point in grid.held_out_prefills} & on_grid
    assert not set(grid.held_out_tokens) & set(grid.tokens) and max(grid.held_out_tokens) < max(grid.tokens)
    for n, cached in grid.held_out_decodes:
        assert n < max(grid.decodes) and cached < max(grid.decode_contexts)
    for step in grid.held_out_steps:
        assert step.tokens <= max(grid.tokens) and step.sequences <= max(grid.sequences)


class FakeGpu:
    """A stream whose spinning kernel and event marks run on a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = 0.0
        self.device = 0.0  # when what was queued will have run
        self.spins: list[float] = []
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.device = max(gpu.device, gpu.host)

            def elapsed_time(self, later: Event) -> float:
                return 1e3 * (later.at - self.at)

        def synchronize() -> None:
            self.host = max(self.host, self.device)

        def sleep(cycles: int) -> None:
            self.spins.append(cycles / 2e9)
            self.device = max(self.device, self.host) + cycles / 2e9

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        monkeypatch.setattr(timing, "perf_counter", lambda: self.host)

    def kernel(self, seconds: float, queueing: float) -> None:
        self.host += queueing
        self.device = max(self.device, self.host) + seconds


@pytest.mark.parametrize("queueing", [1e-5, 1e-3, 5e-3])
def test_the_spin_outlasts_the_host(monkeypatch: pytest.MonkeyPatch, queueing: float) -> None:
    """After the first pass no gap is timed, however slow the host is, and a quick one does not wait long."""
    gpu = FakeGpu(monkeypatch)
    timer = LapTimer(torch.device("cuda"))
    passes = []
    for _ in range(3):
        timer.start()
        for _ in range(20):
            gpu.kernel(1e-4, queueing)
            timer.lap("kernel")
        passes.append(timer.seconds()["kernel"])
    assert passes[1:] == [pytest.approx(20 * 1e-4)] * 2
    assert gpu.spins[1] >= 20 * queueing and gpu.spins[1] <= max(2 * 20 * queueing, 0.001)
    if queueing == 5e-3:
        assert passes[0] > 20 * 1e-4  # the first spin was too short for this host
