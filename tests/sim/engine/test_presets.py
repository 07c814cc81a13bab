"""What an engine of a certain version does where the user sets nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.presets import PRESETS, capture_sizes
from sim.study.scenario import EngineSettings

# As a run of vLLM 0.19.0 on an RTX 4090 resolved it (max_num_seqs 256, max_num_batched_tokens 2048).
RESOLVED = [1, 2, 4, *range(8, 249, 8), *range(256, 513, 16)]


def settings_of(**given: object) -> EngineSettings:
    return check_spec(EngineSettings, dict(given), "made by the test")


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 1024), st.integers(1, 20_000))
def test_captured_sizes_rise_up_to_twice_the_sequences(preset: str, seqs: int, tokens: int) -> None:
    sizes = capture_sizes(preset, seqs, tokens)
    assert sizes == sorted(set(sizes))
    largest = min(2 * seqs, 512, tokens)
    assert all(1 <= size <= largest for size in sizes)
    if preset.startswith("vllm"):
        assert sizes[0] == 1 and largest - sizes[-1] < 16
    else:
        assert not sizes


def test_vllm_019_captures_what_it_resolved_to() -> None:
    assert len(RESOLVED) == 51
    assert capture_sizes("vllm-0.19", 256, 2048) == RESOLVED
    assert list(settings_of(preset="vllm-0.19").graph_sizes) == RESOLVED
    assert list(settings_of(preset="vllm-0.19", max_num_seqs=128).graph_sizes) == [n for n in RESOLVED if n <= 256]


def test_the_reference_captures_none_and_011_goes_in_steps_of_eight() -> None:
    assert list(settings_of(preset="reference").graph_sizes) == []
    assert list(settings_of(preset="vllm-0.11").graph_sizes) == [1, 2, 4, *range(8, 513, 8)]


def test_a_small_budget_bounds_them() -> None:
    assert capture_sizes("vllm-0.19", 64, 100) == [n for n in RESOLVED if n <= 100]
    assert capture_sizes("vllm-0.19", 1, 2048) == [1, 2]


def test_what_the_user_names_comes_first() -> None:
    assert settings_of(preset="vllm-0.19", cudagraph_capture_sizes=[1, 3, 700]).graph_sizes == (1, 3, 700)
    assert settings_of(preset="vllm-0.19", cudagraph_capture_sizes=[]).graph_sizes == ()


@pytest.mark.parametrize("sizes", [[2, 1], [1, 1, 2], [0, 1], [-4]])
def test_sizes_that_do_not_rise_are_refused(sizes: list[int]) -> None:
    with pytest.raises(UserError, match=r"expected rising positive integers") as caught:
        settings_of(cudagraph_capture_sizes=sizes)
    assert "\n" not in caught.value.format_message()


def test_versions_differ_in_when_they_schedule_and_admit() -> None:
    older, newer, own = (settings_of(preset=name) for name in ("vllm-0.11", "vllm-0.19", "reference"))
    assert [one.async_scheduling for one in (older, newer, own)] == [False, True, False]
    assert [one.scheduler_reserve_full_isl for one in (older, newer, own)] == [False, True, False]
    assert [one.reserved_blocks for one in (older, newer, own)] == [1, 1, 0]
    assert not settings_of(preset="vllm-0.19", async_scheduling=False).async_scheduling


def test_transformers_has_its_own_pages_and_budget_and_neither_graphs_nor_schedules_ahead() -> None:
    settings = settings_of(preset="transformers-5.24")
    assert (settings.block_size, settings.max_num_batched_tokens, settings.max_num_seqs) == (256, 8192, 1024)
    assert settings.enable_prefix_caching and settings.enable_chunked_prefill
    assert not settings.async_scheduling and not settings.scheduler_reserve_full_isl
    assert settings.reserved_blocks == 0 and list(settings.graph_sizes) == []
