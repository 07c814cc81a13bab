"""The committed figures of a GPU: the document's tables are what the files say, and the profile is theirs."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from calibrate.profile import Profile
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate
from tests.support.benchmark_modules import load

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "validate" / "results" / "h100-sxm-80gb"


def policies_of_the_campaign() -> ModuleType:
    load("gpu_campaign")  # from then on its parts can be imported
    return importlib.import_module("campaign.policies")


def test_the_document_holds_the_tables_that_the_command_prints() -> None:
    document = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    tables = load("gpu_results").markdown(FOLDER)
    for table in tables.split("\n\n"):
        assert table in document


def test_errors_of_the_validations_are_those_of_the_tables() -> None:
    requests = pl.read_parquet(FOLDER / "check" / "Llama-3.1-8B.requests.parquet")
    errors = load("gpu_results").errors(FOLDER, "medium")
    assert set(errors) == {"baseline", "chunks of 512", "32 sequences", "few blocks, swap"}
    for policy, of_policy in errors.items():
        rows = requests.filter((pl.col("load") == "medium") & (pl.col("policy") == policy))
        mean = {side: rows.filter(pl.col("side") == side)["tpot"].mean() for side in ("predicted", "measured")}
        assert of_policy["tpot.mean"] == pytest.approx(mean["predicted"] / mean["measured"] - 1, abs=1e-9)


def test_the_profile_is_found_by_name_and_predicts_what_was_committed() -> None:
    """Of the baseline at low load, every request's latency: the tables and the profile belong together."""
    profile = Profile.load("h100-sxm-80gb")
    assert profile.device == "NVIDIA H100 80GB HBM3" and "580.159.04" in profile.driver
    assert {"dense", "attention", "per_sequence", "overhead", "copy", "graph", "power"} <= set(profile.tables)
    trace = FOLDER / "check" / "Llama-3.1-8B.low.trace.parquet"
    policies = policies_of_the_campaign()
    blocks = json.loads((FOLDER / "campaign.json").read_text())["parts"]["check"]["found"]["kv_blocks"]["predicted"]
    engine = policies.ENGINE["cuda"] | {"block_size": 16, "kv_blocks": blocks}
    data = {"trace": {"file": str(trace)}, "model": "Llama-3.1-8B", "profile": "h100-sxm-80gb", "engine": engine}
    run = simulate(make_scenario(data | {"seed": 0}, {}, Path(), "the test's scenario"))
    committed = pl.read_parquet(FOLDER / "check" / "Llama-3.1-8B.requests.parquet").filter(
        (pl.col("load") == "low") & (pl.col("policy") == "baseline") & (pl.col("side") == "predicted")
    )
    assert len(committed) > 20
    for name in ("ttft", "e2e"):
        found = run.requests.sort("request_id")[name].to_list()
        assert found == pytest.approx(committed.sort("request_id")[name].to_list(), rel=1e-6)


def test_the_rate_of_a_lone_block_is_what_the_first_sitting_says() -> None:
    spread = load("lone_block_rate").spreads(FOLDER / "first-sitting")
    best = min(spread, key=lambda at: spread[at])
    assert Profile.load("h100-sxm-80gb").grid["lone_block_rate"] == pytest.approx(1e9 / best)
