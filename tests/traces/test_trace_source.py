"""A scenario's trace: exactly one origin, then dequantise, first and scale in this order."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from traces.source import TraceSource

SYNTH: dict[str, Any] = {
    "requests": 200,
    "arrivals": {"process": "poisson", "rate": 4},
    "lengths": {"prompt": {"distribution": "constant", "value": 5}, "output": {"distribution": "constant", "value": 5}},
}
FILE = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n1,2,1\n2,3,1\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of file and synth"),
        ({"file": "a.csv", "synth": SYNTH}, "exactly one of file and synth"),
        ({"synth": SYNTH, "format": "azure"}, "belong to file"),
        ({"synth": SYNTH, "dequantise": True}, "belong to file"),
        ({"file": "a.csv", "first": {}}, "exactly one of seconds, requests and share"),
        ({"file": "a.csv", "first": {"seconds": 1, "requests": 1}}, "exactly one of seconds, requests and share"),
        ({"file": "a.csv", "scale": {"thin": 0}}, "greater than 0"),
        ({"file": "a.csv", "scale": {"thin": 1.5}}, "less than or equal to 1"),
        ({"file": "a.csv", "scale": {"stretch": float("nan")}}, "finite"),
        ({"file": "a.csv", "speed": 3}, "Extra inputs"),
    ],
)
def test_a_bad_source_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TraceSource.model_validate(keys)


def test_a_file_is_found_beside_the_scenario_and_scaled_in_order(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text(FILE)
    source = TraceSource.model_validate(
        {"file": "v.csv", "first": {"seconds": 1.5}, "scale": {"stretch": 3, "copies": 2}}
    )
    trace = source.load(tmp_path, seed=1)
    steps = [next(iter(step)) for step in trace.notes["scaling"]]
    assert steps == ["first_seconds", "time_stretch", "superpose"]
    assert len(trace.requests) == 4
    assert trace.rows_read == 6


def test_columns_mean_the_generic_format(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text(FILE)
    columns = {"arrival_ms": "arrived_at", "prompt_tokens": "num_prefill_tokens", "output_tokens": "num_decode_tokens"}
    trace = TraceSource.model_validate({"file": "v.csv", "columns": columns}).load(tmp_path, seed=1)
    assert trace.format == "generic"
    assert trace.requests["arrival"].to_list() == [0.0, 0.001, 0.002]


def test_dequantise_comes_before_first(tmp_path: Path) -> None:
    rows = [f"{second},1,1" for second in (0, 0, 0, 2, 2, 2, 4, 4)]
    (tmp_path / "v.csv").write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]))
    source = TraceSource.model_validate({"file": "v.csv", "dequantise": True, "first": {"seconds": 2}})
    trace = source.load(tmp_path, seed=1)
    assert trace.requests["arrival"].n_unique() == len(trace.requests) >= 3


def test_synth_depends_on_the_seed_alone(tmp_path: Path) -> None:
    source = TraceSource.model_validate({"synth": SYNTH, "scale": {"thin": 0.5}})
    assert source.load(tmp_path, 1).requests.equals(source.load(tmp_path, 1).requests)
    assert not source.load(tmp_path, 1).requests.equals(source.load(tmp_path, 2).requests)
