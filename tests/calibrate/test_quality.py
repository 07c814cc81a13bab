"""The file of measured qualities: what is found in it, and what is refused."""

import json
from dataclasses import replace

import pytest

from calibrate.model import load_model
from calibrate.quality import Estimate, LayerShares, PolicyQuality, QualityTable, model_fields, read_quality
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")
ONE = Estimate(mean=1.0, low=0.9, high=1.1)


def quality(pruning, **shares):
    return PolicyQuality(pruning=pruning, kl=ONE, top1=ONE, perplexity=ONE, perplexity_ratio=ONE, **shares)


def table(*policies, model=MODEL):
    return QualityTable(
        model=model_fields(model),
        weights={"sha256": "00"},
        text={},
        engine={},
        unpruned={"perplexity": ONE},
        policies=list(policies),
    )


def test_what_is_written_is_read(tmp_path):
    shares = LayerShares(attention=(1.0,) * 32, mlp=(0.5,) * 32)
    written = table(quality({"early_exit": {"layers": [3]}}, layers=shares), quality({"skip_layers": {"layers": [1]}}))
    written.write(tmp_path / "quality.json")
    assert read_quality(tmp_path / "quality.json") == written
    assert written.shape == MODEL  # with its stretched rotary wavelengths
    assert [file.name for file in tmp_path.iterdir()] == ["quality.json"]


def test_a_policy_is_found_by_its_settings_whatever_their_order():
    first, second = quality({"window": {"sinks": 16, "window": 64}}), quality({"window": {"sinks": 16, "window": 128}})
    found = table(first, second)
    assert found.find(MODEL, {"window": {"window": 128, "sinks": 16}}) is second
    assert found.find(MODEL, {"window": {"sinks": 16}}) is None
    assert found.find(MODEL, {}) is None


def test_shares_are_no_part_of_a_policy():
    found = table(quality({"early_exit": {"layers": [3], "confidence": 0.9}}))
    asked = {"early_exit": {"layers": [3], "confidence": 0.9, "shares": [1.0] * 32}}
    assert found.find(MODEL, asked) is found.policies[0]


def test_the_quality_of_one_shape_is_not_that_of_another():
    found = table(quality({"skip_layers": {"layers": [1]}}))
    assert found.find(replace(MODEL, name="other"), {"skip_layers": {"layers": [1]}}) is not None
    assert found.find(replace(MODEL, layers=16), {"skip_layers": {"layers": [1]}}) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "holds a list"),
        ("{}", "model"),
        (json.dumps({"format": "other"}), "format"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, content, said):
    path = tmp_path / "quality.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_quality(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


def test_a_missing_file_says_who_writes_it(tmp_path):
    with pytest.raises(UserError, match="simctl validate quality"):
        read_quality(tmp_path / "quality.json")


def test_shares_must_be_of_as_many_layers_as_the_model_has(tmp_path):
    shares = LayerShares(attention=(1.0,) * 4, mlp=(1.0,) * 4)
    table(quality({"early_exit": {"layers": [3]}}, decoded=shares)).write(tmp_path / "quality.json")
    with pytest.raises(UserError, match="shares of 4 and 4 layers; expected 32"):
        read_quality(tmp_path / "quality.json")


def test_a_model_without_its_fields_is_refused(tmp_path):
    found = json.loads(table().model_dump_json())
    del found["model"]["hidden"]
    (tmp_path / "quality.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"model: .*hidden"):
        read_quality(tmp_path / "quality.json")
