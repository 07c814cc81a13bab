"""A scenario's policies of pruning, from its keys to its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from step_sums import check_that_nothing_is_lost, single_steps

from calibrate.model import load_model
from calibrate.quality import Estimate, LayerShares, PolicyQuality, QualityTable, UnprunedQuality, model_fields
from ground.errors import UserError
from sim.fleet.equal_replicas import equal_replicas
from sim.results.folder import Run
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, make_scenario
from sim.study.simulate import load_trace, simulate

MODEL = "Llama-3.1-8B"
TRACE = {
    "synth": {
        "requests": 12,
        "arrivals": {"process": "poisson", "rate": 8.0},
        "lengths": {
            "prompt": {"distribution": "uniform", "low": 1500, "high": 2500},
            "output": {"distribution": "uniform", "low": 100, "high": 200},
        },
    }
}
FALLING = [1.0] * 16 + [0.5] * 16
POLICIES: dict[str, dict[str, Any]] = {
    "skip_layers": {"every": 4},
    "skip_mlp": {"layers": [20, 21, 22, 23]},
    "shared_kv": {"group": 4},
    "window": {"sinks": 16, "window": 512},
    "heavy_hitters": {"budget": 512},
    "quantised_kv": {"dtype": "fp8"},
    "early_exit": {"layers": [15], "confidence": 0.8, "shares": FALLING},
    "skip_similar": {"similarity": 0.98, "shares": FALLING},
}


def scenario(pruning: dict[str, Any] | None = None, **more: Any) -> Scenario:
    engine = {"cudagraph_capture_sizes": [], **more.pop("engine", {})}
    if pruning is not None:
        engine["pruning"] = pruning
    data = {"model": MODEL, "profile": "datasheet:h100-sxm-80gb", "trace": TRACE, "engine": engine, **more}
    return make_scenario(data, {}, Path(), "made")


def busy(run: Run) -> float:
    """Seconds for which the engine ran steps."""
    return float((run.steps["end"] - run.steps["start"]).sum())


def stated(run: Run) -> dict[str, Any]:
    return {assumption.name: assumption.value for assumption in run.assumptions}


@pytest.fixture(scope="module")
def unpruned() -> Run:
    return simulate(scenario())


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_does_the_same_work_in_less_time_and_says_what_it_rests_on(policy: str, unpruned: Run) -> None:
    run = simulate(scenario({policy: POLICIES[policy]}))
    assert run.requests["status"].to_list() == ["finished"] * 12
    assert single_steps(run.steps)["prefilled"] == single_steps(unpruned.steps)["prefilled"]
    assert single_steps(run.steps)["decoded"] == single_steps(unpruned.steps)["decoded"]
    assert busy(run) < busy(unpruned)
    assert "engine.pruning" in stated(run)
    assert stated(run)["engine.pruning.quality"] == "quality not measured"
    spelled = run.scenario["engine"]["pruning"]
    assert set(spelled) == {policy} and set(POLICIES[policy]) <= set(spelled[policy])
    assert "engine.pruning" not in stated(unpruned) and "pruning" not in unpruned.scenario["engine"]


def test_defaults_are_spelled_out() -> None:
    made = scenario({"window": {"window": 64}, "quantised_kv": {}}).resolved()["engine"]["pruning"]
    assert made == {"window": {"sinks": 16, "window": 64}, "quantised_kv": {"dtype": "int8"}}
    budget = scenario({"heavy_hitters": {"budget": 96}}).resolved()["engine"]
    assert budget["pruning"] == {"heavy_hitters": {"budget": 96, "recent": 48}}
    assert budget["enable_prefix_caching"] is False
    again = make_scenario(scenario({"heavy_hitters": {"budget": 96}}).resolved(), {}, Path(), "again")
    assert again.engine.pruning == scenario({"heavy_hitters": {"budget": 96}}).engine.pruning


def test_what_is_kept_decides_how_many_blocks_there_are() -> None:
    whole = deploy(scenario()).config.kv_blocks
    assert deploy(scenario({"quantised_kv": {"dtype": "fp8"}})).config.kv_blocks in (2 * whole, 2 * whole + 1)
    assert deploy(scenario({"shared_kv": {"group": 4}})).config.kv_blocks > 4 * whole
    assert deploy(scenario({"skip_layers": {"every": 2}})).config.kv_blocks > 2 * whole
    assert deploy(scenario({"skip_mlp": {"every": 2}})).config.kv_blocks > whole
    assert deploy(scenario({"early_exit": POLICIES["early_exit"]})).config.kv_blocks == whole


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(POLICIES)), st.booleans(), st.integers(180, 600), st.integers(0, 2**20))
def test_leap_equals_step(policy: str, ahead: bool, blocks: int, seed: int) -> None:
    engine = {"async_scheduling": ahead, "kv_blocks": blocks, "max_num_seqs": 6}
    made = scenario({policy: POLICIES[policy]}, engine=engine, seed=seed)
    parts, trace = deploy(made), load_trace(made).requests
    runs = [equal_replicas(trace, parts.config, parts.step_times, leap=leap).run() for leap in (True, False)]
    assert_frame_equal(runs[0].requests, runs[1].requests, check_exact=True)
    assert single_steps(runs[0].steps) == single_steps(runs[1].steps)
    check_that_nothing_is_lost(trace, parts.config, runs[0])
    if parts.config.pruning is not None and (most := parts.config.pruning.most_tokens(16)) is not None:
        assert (runs[0].steps["kv_blocks"] <= runs[0].steps["running"] * most // 16).all()


def quality_file(folder: Path, pruning: dict[str, Any], **shares: LayerShares) -> str:
    some = Estimate(mean=0.9, low=0.88, high=0.92)
    measured = PolicyQuality(pruning=pruning, kl=some, top1=some, perplexity=some, perplexity_ratio=some, **shares)
    model = json.loads(json.dumps(model_fields(load_model(MODEL))))
    table = QualityTable(
        model=model,
        weights={},
        text={},
        engine={},
        unpruned=UnprunedQuality(perplexity=some),
        policies=[measured],
    )
    table.write(folder / "quality.json")
    return str(folder / "quality.json")


def test_shares_are_read_where_they_were_measured(tmp_path: Path) -> None:
    exits = {"early_exit": {"layers": [15], "confidence": 0.8}}
    by_layer = LayerShares(attention=tuple(FALLING), mlp=tuple(FALLING))
    given_by_hand = simulate(scenario({"early_exit": POLICIES["early_exit"]}))
    path = quality_file(tmp_path, exits, decoded=by_layer)
    measured = simulate(scenario(exits, quality=path))
    assert_frame_equal(given_by_hand.requests, measured.requests, check_exact=True)
    sources = {one.name: one.source for one in measured.assumptions}
    assert sources["engine.pruning.early_exit.shares"] == sources["engine.pruning.quality"] == "measured"
    assert stated(measured)["engine.pruning.quality"] == "top-1 agreement 0.9"

    with pytest.raises(UserError, match=r"nobody measured which share .*quality.json does not have this policy"):
        deploy(scenario({"early_exit": {"layers": [15], "confidence": 0.7}}, quality=path))
    missing = str(tmp_path / "not-yet.json")
    with pytest.raises(UserError, match=r"\(.*not-yet.json is not there\); expected that, or"):
        deploy(scenario(exits, quality=missing))
    assert deploy(scenario({"skip_mlp": {"every": 2}}, quality=missing)).config.kv_blocks > 0
    with pytest.raises(UserError, match=r"expected that, or engine.pruning.skip_similar.shares"):
        deploy(scenario({"skip_similar": {"similarity": 0.9}}))


@pytest.mark.parametrize(
    ("pruning", "engine", "message"),
    [
        (
            {"skip_layers": {"layers": [32]}},
            {},
            "engine.pruning.skip_layers.layers names layer 32; Llama-3.1-8B has 0 to 31",
        ),
        ({"skip_layers": {"layers": list(range(32))}}, {}, "names all layers of Llama-3.1-8B; expected one that runs"),
        ({"skip_mlp": {"layers": [-1, 4]}}, {}, "skip_mlp.layers names layer -1"),
        ({"skip_layers": {"every": 40}}, {}, "skip_layers.every is 40; expected at most the 32 layers"),
        ({"skip_similar": {"similarity": 0.9, "first": 32, "shares": FALLING}}, {}, "skip_similar.first is 32"),
        ({"shared_kv": {"group": 40}}, {}, "shared_kv.group is 40; expected at most the 32 layers"),
        ({"early_exit": {"layers": [31]}}, {}, "names layer 31; expected layers that run, and not the last"),
        (
            {"skip_layers": {"layers": [9]}, "early_exit": {"layers": [9]}},
            {},
            "names layer 9; expected layers that run",
        ),
        (
            {"early_exit": {"layers": [15], "shares": [1.0, 0.5]}},
            {},
            "engine.pruning.early_exit: shares are of 2 layers; expected 32",
        ),
        ({"skip_mlp": {"every": 2}}, {"overlap_collectives": True}, "engine.overlap_collectives are both given"),
        ({"skip_mlp": {"every": 2}}, {"memory": {"allocator": "caching"}}, "engine.memory are both given"),
        (
            {"early_exit": POLICIES["early_exit"]},
            {"cudagraph_capture_sizes": [1, 2]},
            "a captured graph runs the same for all; expected",
        ),
    ],
)
def test_what_does_not_fit_is_refused(pruning: dict[str, Any], engine: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        deploy(scenario(pruning, engine=engine))


def test_experts_decide_nothing_by_the_input() -> None:
    made = scenario({"skip_similar": POLICIES["skip_similar"]}, model="Qwen3-30B-A3B")
    with pytest.raises(UserError, match=r"skip_similar is given and Qwen3-30B-A3B is a mixture of experts"):
        deploy(made)


def test_a_measured_gpu_packs_by_its_bytes() -> None:
    made = make_scenario(
        {"model": MODEL, "profile": "h100-sxm-80gb", "trace": TRACE, "engine": {"pruning": {"quantised_kv": {}}}},
        {},
        Path(),
        "made",
    )
    ratios = {one.name: one.value for one in deploy(made).assumptions}
    assert ratios["kernel.attention.int8"] == f"{132 / 256:.4g} × bytes"
