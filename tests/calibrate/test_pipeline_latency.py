"""Stages of a pipeline: together the whole step, each its share; what they hold; what they send."""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import EXPERTS, MODEL, make_profile

from calibrate.collective_law import Collectives
from calibrate.latency import StepLatency
from calibrate.memory import kv_block_count
from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism, stage_layers
from calibrate.pipeline_latency import PipelineLatency
from calibrate.pipeline_memory import stage_memories
from calibrate.skew import Spread
from ground.errors import UserError

SIZES = [1, 2, 4, 8, 16, 32]
DEEP = replace(MODEL, name="deep-llama", layers=7)
DEEP_EXPERTS = replace(EXPERTS, name="deep-experts", layers=7)


@cache
def links(ranks: int = 2) -> Collectives:
    laws = {"all_reduce": (5e-6, 1e-11), "all_gather": (7e-6, 2e-11), "send_recv": (4e-6, 3e-11)}
    rows = [
        {"operation": name, "ranks": ranks, "bytes": size, "seconds": latency + size * per_byte}
        for name, (latency, per_byte) in laws.items()
        for size in (64, 1 << 12, 1 << 20)
    ]
    return Collectives(pl.DataFrame(rows), "made by the test")


@cache
def whole_and_staged(
    model: ModelShape, stages: int, tensor: int = 1, **rest: object
) -> tuple[StepLatency, PipelineLatency]:
    profile = make_profile(model, tensor)
    known = {"collectives": links(), "graph_sizes": SIZES, **rest}
    return (
        StepLatency(profile, model, parallelism=Parallelism(tensor), **known),  # type: ignore[arg-type]
        PipelineLatency(profile, model, parallelism=Parallelism(tensor, pipeline=stages), **known),
    )


batches = st.tuples(
    st.lists(st.tuples(st.integers(16, 200), st.integers(0, 1000)), max_size=3),
    st.lists(st.integers(0, 3000), max_size=40),
).filter(lambda batch: batch[0] or batch[1])


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(2, 5), st.sampled_from([1, 2]), st.sampled_from([DEEP, DEEP_EXPERTS]), st.booleans())
def test_the_stages_together_are_the_whole_step(
    batch: tuple[list[tuple[int, int]], list[int]], stages: int, tensor: int, model: ModelShape, unequal: bool
) -> None:
    prefills, contexts = batch
    spread = Spread(sum(c * c for c in contexts), max(contexts)) if contexts and unequal else None
    whole, staged = whole_and_staged(model, stages, tensor, host_overhead=0.0)
    seconds = staged.stages(prefills, len(contexts), sum(contexts), spread)
    assert len(seconds) == stages and min(seconds) > 0
    expected = whole.step(prefills, len(contexts), sum(contexts), spread)
    assert sum(seconds) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(2, 5), st.integers(1, 50), st.booleans())
def test_many_decode_steps_are_bit_for_bit_the_single_ones(
    contexts: list[int], stages: int, steps: int, overlaps: bool
) -> None:
    _, staged = whole_and_staged(DEEP, stages, host_overhead=1e-4, host_overlaps=overlaps)
    decodes, kv_tokens = len(contexts), sum(contexts)
    runs = staged.stage_runs(decodes, kv_tokens, steps)
    for step in range(steps):
        assert [float(run[step]) for run in runs] == staged.stages((), decodes, kv_tokens + step * decodes)


@settings(max_examples=40, deadline=None)
@given(batches, st.integers(1, 20), st.integers(1, 100), st.sampled_from([DEEP, DEEP_EXPERTS]))
def test_stages_count_outside_the_grid_what_whole_steps_count(
    batch: tuple[list[tuple[int, int]], list[int]], steps: int, times: int, model: ModelShape
) -> None:
    prefills, contexts = batch
    decodes = times * len(contexts)
    whole, staged = whole_and_staged(model, 3)
    for one in (whole, staged):
        one.extrapolated.clear()
    whole.step(prefills, decodes, times * sum(contexts))
    staged.stages(prefills, decodes, times * sum(contexts))
    if decodes:
        whole.decode_run(decodes, times * sum(contexts), steps)
        staged.stage_runs(decodes, times * sum(contexts), steps)
    assert staged.extrapolated == whole.extrapolated


def test_every_stage_has_the_hosts_part() -> None:
    _, without = whole_and_staged(DEEP, 3, host_overhead=0.0)
    _, added = whole_and_staged(DEEP, 3, host_overhead=0.5)
    _, hidden = whole_and_staged(DEEP, 3, host_overhead=0.5, host_overlaps=True)
    kernels = without.stages((), 4, 400)
    assert added.stages((), 4, 400) == pytest.approx([own + 0.5 for own in kernels])
    assert hidden.stages((), 4, 400) == [0.5] * 3
    assert added.stages([(64, 0)], 0, 0) == pytest.approx([own + 0.5 for own in without.stages([(64, 0)], 0, 0)])


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (32, 4, [8, 8, 8, 8]),
        (29, 4, [7, 7, 8, 7]),
        (30, 4, [7, 8, 8, 7]),
        (31, 4, [8, 8, 8, 7]),
        (7, 2, [4, 3]),
        (5, 5, [1] * 5),
    ],
)
def test_layers_are_divided_as_vllm_does(layers: int, stages: int, expected: list[int]) -> None:
    assert stage_layers(layers, stages) == expected


@given(st.integers(1, 200), st.integers(1, 16))
def test_no_layer_is_lost(layers: int, stages: int) -> None:
    found = stage_layers(layers, stages)
    assert sum(found) == layers and len(found) == stages and max(found) - min(found) <= 1


def test_two_tensors_are_sent_in_parts_and_gathered() -> None:
    _, alone = whole_and_staged(DEEP, 2)
    _, two = whole_and_staged(DEEP, 2, 2)
    size = 16 * DEEP.hidden * DEEP.dtype_bytes
    law = links()
    assert alone.sends(0, 13) == pytest.approx(2 * law.seconds("send_recv", 2, size))
    half = size / 2
    expected = 2 * (law.seconds("send_recv", 2, half) + law.seconds("all_gather", 2, half))
    assert two.sends(0, 13) == pytest.approx(expected)
    assert alone.sends(100, 5) > alone.sends(0, 13)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-30B-A3B"]), st.integers(1, 8), st.sampled_from([1, 2]))
def test_stages_hold_the_model_once(name: str, stages: int, tp: int) -> None:
    """But for norms, and a table that a tied model has at both ends."""
    model = load_model(name)
    held = stage_memories(model, tp, 1, stages)
    assert sum(one.kv_bytes_per_token for one in held) == model.kv_bytes_per_token(tp)
    assert sum(one.weights for one in held) == pytest.approx(model.weight_bytes(tp), rel=1e-4)
    assert [one.samples for one in held] == [False] * (stages - 1) + [True]


def test_more_stages_have_room_for_more_blocks() -> None:
    model = load_model("Llama-3.1-70B")
    with pytest.raises(UserError, match="leaves no room"):
        kv_block_count("h100-sxm-80gb", model, 1, 16, 0.9, 2048)
    with pytest.raises(UserError, match="stage 2 of 2 leaves no room"):
        kv_block_count("h100-sxm-80gb", model, 1, 16, 0.83, 2048, stages=2)
    blocks = [kv_block_count("h100-sxm-80gb", model, 1, 16, 0.9, 2048, stages=stages)[0] for stages in (4, 8)]
    assert 0 < blocks[0] < blocks[1] / 2, "a stage holds less of the model and of every block"


def test_the_division_is_stated() -> None:
    _, staged = whole_and_staged(DEEP, 3)
    stated = {one.name: one for one in staged.assumptions}["engine.pipeline_parallel"]
    assert stated.value == 3 and "2, 3, 2" in stated.note
    assert np.isclose(sum(staged.layers), 7)
