"""`simctl validate winners` over several studies: one table, quality where a model is pruned, what no engine runs."""

import json
import shutil

import polars as pl
import pytest
import torch
import yaml
from click.testing import CliRunner

# Puts tests/support on the path.
from small_language_model import SMALL, small_corpus

from ground.errors import UserError
from sim.study.study import load_study
from sim.study.sweep import sweep
from simctl import main
from validate.measure import read_measurement
from validate.quality.language_model import LanguageModel
from validate.sweep import candidates, plan, study_folders

ENGINE = {"preset": "reference", "kv_blocks": 32, "max_num_seqs": 4, "max_num_batched_tokens": 64}
SCENARIO = {
    "trace": {
        "synth": {
            "requests": 4,
            "arrivals": {"process": "constant", "rate": 200},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 20},
                "output": {"distribution": "constant", "value": 3},
            },
        }
    },
    "model": "model",
    "quality": "quality/quality.json",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": ENGINE,
    "slo": {"ttft": 60},
}
SKIP, WINDOW = {"skip_layers": {"layers": [1]}}, {"window": {"sinks": 16, "window": 32}}


def write(path, data):
    path.write_text(yaml.safe_dump(data))


def run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "240"}).invoke(main, ["validate", *map(str, arguments)])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr("validate.quality.text.python_text", lambda only_held_out=False: small_corpus())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Two finished sweeps; of one policy the quality is measured."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "model").mkdir()
    LanguageModel.drawn(SMALL, 0, 16).save(folder / "model")
    studies = {
        "batching": {"parameters": {"engine.max_num_seqs": [1, 4]}, "objective": "ttft.mean", "winners": 1},
        "pruning": {"parameters": {"engine.pruning": [SKIP, WINDOW]}, "objective": "e2e.mean", "winners": 3},
    }
    write(folder / "measured.yaml", SCENARIO | {"engine": ENGINE | {"pruning": SKIP}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("validate.quality.text.python_text", lambda only_held_out=False: small_corpus())
        run("quality", folder / "measured.yaml", "-o", folder / "quality")
    for name, study in studies.items():
        write(folder / f"{name}.yaml", {"scenario": SCENARIO, **study})
        sweep(load_study(folder / f"{name}.yaml"), folder / name)
    return folder


@pytest.fixture
def work(studied, tmp_path):
    shutil.copytree(studied, tmp_path / "work")
    # The copies name the model and the qualities where they were: these are only read.
    return tmp_path / "work"


def test_a_sweep_says_what_pruning_costs_or_that_nobody_measured_it(work):
    page = (work / "pruning" / "report.html").read_text()
    assert "quality not measured" in page
    assert "top-1 agreement" in page
    settings = pl.read_parquet(work / "pruning" / "points.parquet")["engine.pruning"].to_list()
    assert settings == [None, json.dumps(SKIP), json.dumps(WINDOW)]


def test_several_studies_end_in_one_table(work):
    output = run("winners", work / "batching", work / "pruning", "--repeats", 2, "-o", work / "checked")
    assert output.count("Winners checked") == 3  # of each study, and of both
    content = json.loads((work / "checked" / "validation.json").read_text())
    assert sorted((gain["study"], gain["policy"], gain["metric"]) for gain in content["gains"]) == [
        ("batching", "winner-1", "ttft.mean"),
        ("pruning", "winner-1", "e2e.mean"),
        ("pruning", "winner-2", "e2e.mean"),
        ("pruning", "winner-3", "e2e.mean"),
    ]
    verdicts = ["other sign", "not predicted", "as predicted", "no difference", "not known"]
    places = [verdicts.index(gain["verdict"]) for gain in content["gains"]]
    assert places == sorted(places)
    qualities = {json.dumps(gain["parameters"]): gain["quality"] for gain in content["gains"]}
    assert set(qualities[json.dumps({"engine.pruning": SKIP})]) >= {"kl", "top1", "perplexity_ratio"}
    assert qualities[json.dumps({"engine.pruning": WINDOW})] == "quality not measured"
    assert next(gain for gain in content["gains"] if gain["study"] == "batching")["quality"] is None
    for study in ("batching", "pruning"):
        own = json.loads((work / "checked" / study / "validation.json").read_text())
        assert own["gains"] == [gain for gain in content["gains"] if gain["study"] == study]
        assert own["policies"][0]["repeats"] == 2
        engine, _, _ = read_measurement(work / "checked" / study / "measured" / "baseline" / "repeat-2")
        assert engine["weights"].endswith("model")  # those beside the model's config.json
    assert "quality not measured" in (work / "checked" / "report.html").read_text()


def test_repeats_of_all_studies_take_turns(work):
    chosen = [one for name in ("batching", "pruning") for one in candidates(work / name, name, top=1)]
    replays = plan(chosen, 2, lambda candidate: work / "checked" / candidate.study)
    assert [replay.folder.relative_to(work / "checked").as_posix() for replay in replays] == [
        f"{study}/measured/{policy}/repeat-{repeat}"
        for repeat in (1, 2)
        for study in ("batching", "pruning")
        for policy in ("winner-1", "baseline")
    ]


def test_a_policy_that_the_engine_refuses_is_told_and_the_others_measured(work):
    path = work / "batching" / "winners" / "winner-1" / "scenario.yaml"
    scenario = yaml.safe_load(path.read_text())
    write(path, scenario | {"fleet": scenario["fleet"] | {"replicas": 2}})
    output = run("winners", work / "batching", "--repeats", 1)
    assert "batching, winner-1: not replayed: fleet.replicas is 2" in output
    content = json.loads((work / "batching" / "validation" / "validation.json").read_text())
    assert list(content["refused"]) == ["winner-1"]
    assert [policy["name"] for policy in content["policies"]] == ["baseline"]
    assert "Not replayed" in (work / "batching" / "validation" / "report.html").read_text()
    path = work / "batching" / "winners" / "baseline" / "scenario.yaml"
    write(path, scenario | {"fleet": scenario["fleet"] | {"replicas": 2}})
    assert "expected 1 and 1" in run("winners", work / "batching", "-o", work / "none", code=2)


def test_prompts_may_be_text(work):
    run("winners", work / "batching", "--repeats", 1, "--prompts", "text", "-o", work / "checked")
    engine, _, _ = read_measurement(work / "checked" / "measured" / "baseline" / "repeat-1")
    assert engine["prompts"] == "text"
    output = run("winners", work / "batching", "--repeats", 1, "-o", work / "checked", "--prompts", "text")
    assert "Winners checked" in output
    scenario = SCENARIO | {"model": "tiny-llama"}
    write(work / "other.yaml", scenario)
    arguments = ("replay", work / "other.yaml", "--prompts", "text", "-o", work / "out")
    assert "has 4096 tokens; expected 256" in run(*arguments, "--engine", "reference", code=2)
    assert "belongs to --engine reference" in run(*arguments, "--engine", "transformers", code=2)


def test_what_a_policy_copies_is_told_predicted_and_measured(work):
    """Four requests of four blocks each come at once to a pool of ten: some are swapped out, and back in."""
    (work / "trace.csv").write_text("arrival,prompt_tokens,output_tokens\n" + "0,20,40\n" * 4)
    columns = {name: name for name in ("arrival", "prompt_tokens", "output_tokens")}
    engine = ENGINE | {"kv_blocks": 10, "host_bandwidth": 1e10}
    scenario = SCENARIO | {"trace": {"file": str(work / "trace.csv"), "columns": columns}, "engine": engine}
    scenario |= {"model": str(work / "model"), "quality": None}
    study = {"scenario": scenario, "parameters": {"engine.swap_blocks": [16]}, "objective": "e2e.mean", "winners": 2}
    write(work / "swap.yaml", study)
    sweep(load_study(work / "swap.yaml"), work / "swap")
    run("winners", work / "swap", "--repeats", 1)
    content = json.loads((work / "swap" / "validation" / "validation.json").read_text())
    swapping = next(gain for gain in content["gains"] if gain["parameters"])
    block_bytes = 16 * 2 * SMALL.layers * SMALL.kv_heads * SMALL.head_dim * 4
    assert swapping["copies"]
    for copies in swapping["copies"]:
        assert copies["measured_bytes"] == copies["predicted_bytes"] > 0
        assert copies["measured_bytes"] % block_bytes == 0
        assert copies["predicted_seconds"] > 0
    plain = [gain for gain in content["gains"] if not gain["parameters"]]
    assert all(gain["copies"] == [] for gain in plain)
    assert "What was copied" in (work / "swap" / "validation" / "report.html").read_text()


def test_studies_are_told_apart_by_their_names(tmp_path):
    for name in ("a/sweep", "b/sweep", "b/other"):
        (tmp_path / name).mkdir(parents=True)
    one, two, three = tmp_path / "a/sweep", tmp_path / "b/sweep", tmp_path / "b/other"
    out = tmp_path / "out"
    assert study_folders([one], None) == {"sweep": (one, one / "validation")}
    assert study_folders([one], out) == {"sweep": (one, out)}
    assert study_folders([one, three], out) == {"sweep": (one, out / "sweep"), "other": (three, out / "other")}
    assert list(study_folders([one, two], out)) == ["a-sweep", "b-sweep"]
    with pytest.raises(UserError, match="same name"):
        study_folders([one, one], out)
    with pytest.raises(UserError, match="expected -o"):
        study_folders([one, two], None)


def test_the_objective_is_that_of_the_study_or_of_the_winner(work):
    assert candidates(work / "pruning", "pruning")[0].objective == "e2e.mean"
    path = work / "pruning" / "winners.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entry | {"objective": "tpot.p99"} for entry in entries]))
    assert candidates(work / "pruning", "pruning")[0].objective == "tpot.p99"
    path.write_text(json.dumps([entry | {"objective": "quality.top1"} for entry in entries]))
    assert candidates(work / "pruning", "pruning")[0].objective == "e2e.mean"
    path.write_text(json.dumps([entry | {"objective": "speed"} for entry in entries]))
    with pytest.raises(UserError, match="metric 'speed' is unknown"):
        candidates(work / "pruning", "pruning")


def test_a_file_of_qualities_may_be_given(work, tmp_path):
    skipping = [one for one in candidates(work / "pruning", "pruning") if "skip_layers" in one.pruning]
    assert skipping[0].quality is not None
    with pytest.raises(UserError, match="cannot be read"):
        candidates(work / "pruning", "pruning", quality=tmp_path / "none.json")
    assert "cannot be read" in run("winners", work / "pruning", "--quality", tmp_path / "none.json", code=2)
