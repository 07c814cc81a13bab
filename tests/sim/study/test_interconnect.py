"""Links, pipelines and overlap from a scenario to its run."""

from pathlib import Path
from typing import Any

import pytest

from calibrate.model import load_model
from calibrate.parallelism import Parallelism
from calibrate.pipeline_latency import PipelineLatency
from calibrate.profile import load_profile
from ground.errors import UserError
from sim.results.diagnosis.row_causes import row_causes
from sim.results.folder import Run
from sim.study.deployment import deploy
from sim.study.interconnect import engine_collectives
from sim.study.long_sequences import LENGTHS, chunk_table, growth, in_chunks
from sim.study.scenario import EngineSettings, make_scenario
from sim.study.simulate import simulate

BASE: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"tensor_parallel": 2, "kv_blocks": 4000},
    "trace": {
        "synth": {
            "requests": 40,
            "arrivals": {"process": "poisson", "rate": 30.0},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 100, "high": 900},
                "output": {"distribution": "uniform", "low": 10, "high": 60},
            },
        }
    },
}


def run(**settings: Any) -> Run:
    engine = {f"engine.{name}": value for name, value in settings.items()}
    return simulate(make_scenario(BASE, engine, Path("."), "the scenario"))


def stated(result: Run, name: str) -> list[Any]:
    return [one.value for one in result.assumptions if one.name == name]


def test_a_pipeline_of_two_runs_through_and_counts_its_gpus() -> None:
    result = run(pipeline_parallel=2)
    assert result.requests["status"].to_list() == ["finished"] * 40
    assert result.scenario["engine"]["pipeline_parallel"] == 2
    assert set(result.replicas["gpus"]) == {4}
    assert stated(result, "engine.pipeline_parallel") == [2]
    assert stated(result, "engine.collectives.modelled") == ["send_recv × 2"]


def test_stages_far_apart_take_longer() -> None:
    near, far = (run(pipeline_parallel=2, **more) for more in ({}, {"pipeline_link": {"kind": "wan-regional"}}))
    assert far.metrics["tpot"]["mean"] > near.metrics["tpot"]["mean"] + 2 * 4.9e-3, "two tensors over 1,000 km a token"
    assert stated(far, "engine.pipeline_link.latency") == [pytest.approx(4.9e-3)]
    assert "engine.collectives.modelled" not in [one.name for one in far.assumptions]


def test_a_slow_link_is_slower_and_overlap_gives_some_of_it_back() -> None:
    fast, slow = run(), run(link={"bandwidth": 16e9, "latency": 1e-6})
    hidden = run(link={"bandwidth": 16e9, "latency": 1e-6}, overlap_collectives=True)
    times = [one.metrics["ttft"]["mean"] for one in (fast, hidden, slow)]
    assert times == sorted(times) and times[0] < times[1] < times[2]
    assert "engine.link: rings over 1.6e+10 bytes/s" in str([one.note for one in slow.assumptions])
    assert stated(hidden, "engine.overlap_collectives") == ["two halves"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pipeline_link": {"kind": "pcie5"}}, "pipeline_link is given and pipeline_parallel is 1"),
        ({"pipeline_parallel": 2, "overlap_collectives": True}, "overlap_collectives is true and pipeline_parallel"),
        ({"pipeline_parallel": 33}, "Llama-3.1-8B has 32 layers"),
        ({"pipeline_parallel": 2, "swap_blocks": 10}, "pipeline_parallel is 2 and swap_blocks is given"),
        ({"pipeline_parallel": 2, "shapes": {}}, "shapes is given and pipeline_parallel is 2"),
        ({"link": {"kind": "string"}}, "unknown kind of link 'string'"),
        ({"expert_exchange": "pigeon"}, "engine.expert_exchange"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        run(**settings)
    assert said in caught.value.format_message() and "\n" not in caught.value.format_message()


# Long sequences


def settings_of(tensor: int, **more: Any) -> EngineSettings:
    return EngineSettings.model_validate({"tensor_parallel": tensor, **more})


def test_communication_overtakes_where_links_are_slow_and_attention_leaves_it_behind() -> None:
    model = load_model("Llama-3.1-8B")
    profile = load_profile("datasheet:h100-sxm-80gb", model, 4, Path())
    near = growth(settings_of(4), model, profile)
    far = growth(settings_of(4, link={"bandwidth": 100e9, "latency": 1e-6}), model, profile)
    assert near.overtakes_at is None and near.falls_behind_at is None
    assert far.overtakes_at is not None and far.falls_behind_at is not None
    assert far.overtakes_at < far.falls_behind_at
    for found in (near, far):
        rows = found.rows
        assert rows["tokens"].to_list() == list(LENGTHS)
        for column in ("compute", "communication", "whole", "halves"):
            assert rows[column].is_sorted()
        assert (rows["halves_compute"] >= rows["compute"] * (1 - 1e-12)).all(), "halves are no cheaper"
        assert (rows["whole"] == rows["compute"] + rows["communication"]).all()
        assert (rows["halves_exposed"] >= 0).all()
    long = near.rows.filter(near.rows["tokens"] >= 4096)
    assert (long["halves"] < long["whole"]).all()


def test_a_prompt_in_chunks_fills_the_stages() -> None:
    model = load_model("Llama-3.1-8B")
    profile = load_profile("datasheet:h100-sxm-80gb", model, 1, Path())
    collectives, _ = engine_collectives(settings_of(1), profile)
    times = PipelineLatency(profile, model, parallelism=Parallelism(pipeline=4), collectives=collectives)
    table = chunk_table(times, 16384, [16384, 8192, 4096, 2048, 1024])
    assert table["bubble"].is_sorted(descending=True) and table["seconds"].is_sorted(descending=True)
    assert table["bubble"][0] == pytest.approx(0.75, abs=0.01), "one chunk is in one of four stages"
    alone, _ = in_chunks(times, 1000, 1000)
    expected = sum(times.stages([(1000, 0)], 0, 0)) + 3 * times.sends(1000, 0)
    assert alone == pytest.approx(expected)


def test_a_pipelines_seconds_are_not_told_by_cause() -> None:
    """Its batches overlap, so a request's seconds are no sum of steps: said, and not told wrongly."""
    scenario = make_scenario(BASE, {"engine.pipeline_parallel": 2}, Path("."), "the scenario")
    with pytest.raises(UserError, match="is 2, and batches of a pipeline overlap"):
        row_causes(simulate(scenario), deploy(scenario).step_times, simulated=True)
