"""Speculative decoding from a scenario to its run: step times, memory, metrics, causes and what is said of them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from calibrate.datasheet import datasheet_profile
from calibrate.model import load_model
from ground.errors import UserError
from sim.results.diagnosis.row_causes import row_causes
from sim.results.folder import Run
from sim.study.deployment import deploy, deploy_profile
from sim.study.scenario import EngineSettings, Scenario, make_scenario
from sim.study.simulate import simulate

BASE: dict[str, Any] = {
    "model": "Llama-3.1-70B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"tensor_parallel": 4},
    "trace": {
        "synth": {
            "requests": 20,
            "arrivals": {"process": "poisson", "rate": 4.0},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 100, "high": 900},
                "output": {"distribution": "uniform", "low": 40, "high": 90},
            },
        }
    },
}
LOOKUP = {"tokens": 4, "acceptance": [0.7, 0.5, 0.4, 0.3], "host_seconds": 1e-4}
DRAFT = {"method": "draft", "draft_model": "Llama-3.1-8B", "tokens": 3, "acceptance": 0.8}


def scenario(speculative: dict[str, Any] | None, **more: Any) -> Scenario:
    given = {} if speculative is None else {"engine.speculative": speculative}
    return make_scenario(BASE, given | more, Path("."), "the scenario")


def run(speculative: dict[str, Any] | None, **more: Any) -> Run:
    return simulate(scenario(speculative, **more))


def stated(result: Run, name: str) -> list[Any]:
    return [one.value for one in result.assumptions if one.name == name]


@pytest.mark.parametrize("speculative", [LOOKUP, DRAFT], ids=["lookup", "draft"])
def test_a_run_says_what_it_drafted_and_is_faster_at_small_batches(speculative: dict[str, Any]) -> None:
    plain, found = run(None), run(speculative)
    assert found.requests["status"].to_list() == ["finished"] * 20
    assert found.requests["tpot"].mean() < plain.requests["tpot"].mean()
    assert "speculation" not in plain.metrics
    speculation = found.metrics["speculation"]
    gained = int((found.steps["decode_seqs"] * found.steps["steps"]).sum()) * speculation["tokens_per_step"]
    assert gained == pytest.approx(int(found.requests["output_tokens"].sum()) - 20)
    rates = [0.7, 0.5, 0.4, 0.3] if "host_seconds" in speculative else [0.8**i for i in (1, 2, 3)]
    assert speculation["acceptance"] == pytest.approx(np.mean(rates), abs=0.05)
    assert speculation["seconds"] > 0
    kept = found.scenario["engine"]["speculative"]
    assert kept["prompt_lookup_max"] == 5 and kept["tokens"] == speculative["tokens"]  # defaults are spelled out


@pytest.mark.parametrize("speculative", [LOOKUP, DRAFT], ids=["lookup", "draft"])
def test_every_second_has_a_cause(speculative: dict[str, Any]) -> None:
    found = run(speculative)
    causes = row_causes(found, deploy(scenario(speculative)).step_times, simulated=True)
    seconds = sum(own for own in causes.seconds.values())
    assert seconds == pytest.approx((causes.rows["end"] - causes.rows["start"]).to_numpy())
    assert causes.seconds["drafting"].sum() == pytest.approx(found.metrics["speculation"]["seconds"])
    assert causes.notes == ["steps that verify drafts: of their sums the parts are known, scaled to each step"]
    assert causes.explained == pytest.approx(1.0, abs=0.1)


def test_a_draft_model_takes_its_room() -> None:
    alone, beside = deploy(scenario(None)).config.kv_blocks, deploy(scenario(DRAFT)).config.kv_blocks
    model, draft = load_model("Llama-3.1-70B"), load_model("Llama-3.1-8B")
    block = 16 * (model.kv_bytes_per_token(4) + draft.kv_bytes_per_token(4))
    free = alone * 16 * model.kv_bytes_per_token(4) - draft.weight_bytes(4)
    assert free - block < beside * block <= free
    assert stated(run(DRAFT), "memory.kv_blocks beside draft") == [beside]
    assert deploy(scenario(LOOKUP)).config.kv_blocks == alone
    given = {"engine.kv_blocks": 5000}
    assert deploy(scenario(DRAFT, **given)).config.kv_blocks == 5000


def test_what_was_not_given_is_said() -> None:
    found = run({"tokens": 4, "acceptance": 0.5})
    assert stated(found, "engine.speculative.host_seconds") == [0.0]
    assert stated(found, "engine.speculative.proposals") == [1.0]
    assert len(stated(found, "engine.speculative.attention")) == 1
    assert stated(run(LOOKUP), "engine.speculative.host_seconds") == []
    drafted = run(DRAFT)
    assert stated(drafted, "engine.speculative.draft_model") == ["Llama-3.1-8B"]
    assert stated(drafted, "engine.speculative.proposals") == []
    assert any(one.name.startswith("draft.") for one in drafted.assumptions)


def test_draws_follow_the_scenarios_seed_unless_they_have_their_own() -> None:
    lengths = {name: {"distribution": "constant", "value": 60} for name in ("prompt", "output")}
    same = {"trace.synth.lengths": lengths, "trace.synth.arrivals": {"process": "constant", "rate": 4.0}}
    first, again, other = (run(LOOKUP, seed=seed, **same) for seed in (1, 1, 2))
    assert_frame_equal(first.requests, again.requests, check_exact=True)
    assert first.metrics["speculation"]["drafted"] != other.metrics["speculation"]["drafted"]
    fixed = [run({**LOOKUP, "seed": 5}, seed=seed, **same).metrics["speculation"]["drafted"] for seed in (1, 2)]
    assert fixed[0] == fixed[1]


def test_a_draft_models_path_begins_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "draft.json").write_text("{}")
    made = make_scenario(BASE, {"engine.speculative": {**DRAFT, "draft_model": "draft.json"}}, tmp_path, "the scenario")
    assert made.engine.speculative is not None
    assert made.engine.speculative.draft_model == str(tmp_path / "draft.json")


@pytest.mark.parametrize(
    "fleet",
    [
        {"clients": {"timeout": 0.2, "retries": {"on": ["timed_out"], "attempts": 2}}},
        {
            "disaggregation": {
                "prefill": {"replicas": 1},
                "decode": {"replicas": 1},
                "link": {"bandwidth": 5e10, "latency": 1e-5},
            }
        },
    ],
    ids=["clients that go", "prefill and decode apart"],
)
def test_in_a_fleet_every_request_ends(fleet: dict[str, Any]) -> None:
    base = {**BASE, "model": "Llama-3.1-8B", "engine": {"speculative": LOOKUP}, "fleet": fleet}
    found = simulate(make_scenario(base, {"trace.synth.arrivals.rate": 40.0}, Path("."), "the scenario"))
    assert found.requests["status"].null_count() == 0
    assert "unfinished" not in found.requests["status"].to_list()
    if "disaggregation" in fleet:
        # Each request's tokens but the first, of its prefill: the joining step gives the first or the second.
        decoded = int((found.steps["decode_seqs"] * found.steps["steps"]).sum())
        accepted = int(found.events.filter(pl.col("kind") == "accepted")["amount"].sum())
        outputs = int(found.requests["output_tokens"].sum())
        assert outputs - 20 <= decoded + accepted <= outputs


@pytest.mark.parametrize(
    ("speculative", "more", "message"),
    [
        ({**DRAFT, "draft_model": "Qwen3-32B"}, {}, "Qwen3-32B has 151936 tokens in its vocabulary and Llama-3.1-70B"),
        ({**DRAFT, "draft_model": "nobody"}, {}, "nobody"),
        (DRAFT, {"engine.memory": {}}, "speculative is given, and so is memory"),
        (LOOKUP, {"engine.shapes": {}}, "speculative is given, and so is shapes"),
        (LOOKUP, {"engine.overlap_collectives": True}, "speculative is given, and so is overlap_collectives"),
        ({"tokens": 4}, {}, "engine.speculative.acceptance is not given"),
        ({"tokens": 0, "acceptance": 0.5}, {}, "engine.speculative.tokens"),
        ({"tokens": 4, "acceptance": 1.5}, {}, "engine.speculative.acceptance"),
        ({"tokens": 4, "accept": 0.5}, {}, "unknown key 'engine.speculative.accept'"),
    ],
)
def test_mistakes_are_said_in_a_line(speculative: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        simulate(scenario(speculative, **more))
    assert "\n" not in str(caught.value)


def test_a_draft_model_that_leaves_no_room_is_refused() -> None:
    base = {**BASE, "model": "Llama-3.1-8B", "engine": {"tensor_parallel": 1}}
    too_large = {**DRAFT, "draft_model": "Llama-3.1-70B"}
    with pytest.raises(UserError, match="expected a smaller draft model"):
        simulate(make_scenario(base, {"engine.speculative": too_large}, Path("."), "the scenario"))


def test_without_a_scenario_a_draft_model_needs_a_profile_of_its_own() -> None:
    settings = EngineSettings(tensor_parallel=4, speculative=DRAFT)
    model = load_model("Llama-3.1-70B")
    with pytest.raises(UserError, match=r"engine\.speculative\.draft_profile is not given"):
        deploy_profile(settings, model, datasheet_profile("h100-sxm-80gb", model, 4))


def test_swapped_blocks_hold_the_drafts_keys_too() -> None:
    swap = {"engine.swap_blocks": 100, "engine.host_bandwidth": 2e10}
    alone, beside = (deploy(scenario(one, **swap)).step_times.swap(64, 0) for one in (None, DRAFT))
    model, draft = load_model("Llama-3.1-70B"), load_model("Llama-3.1-8B")
    longer = 1 + draft.kv_bytes_per_token(4) / model.kv_bytes_per_token(4)
    assert beside / alone == pytest.approx(longer, rel=0.05)
