"""`simctl trace` as a user types it, good input and bad."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from traces.commands import sparkline, trace
from traces.loading import formats, read

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i / 2},{i + 1},3\n" for i in range(200))
MOONCAKE = "".join(
    json.dumps({"timestamp": i // 5 * 3000, "input_length": 1024, "output_length": 3, "hash_ids": [0, i % 7 + 1]})
    + "\n"
    for i in range(100)
)
SPEC = """
requests: 50
arrivals: {process: gamma, rate: 2, burstiness: 0.5}
lengths:
  prompt: {distribution: lognormal, median: 100, sigma: 1, high: 2000}
  output: {distribution: zipf, exponent: 1.2, high: 100}
sessions:
  turns: {distribution: geometric, mean: 3}
  think_time: {distribution: exponential, mean: 4}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "v.csv").write_text(VIDUR)
    (tmp_path / "m.jsonl").write_text(MOONCAKE)
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simctl(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(trace, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_formats_lists_all_with_their_units() -> None:
    output = simctl("formats").output
    assert all(name in output for name in formats())
    assert "[ms]" in output


def test_info_prints_the_numbers_and_a_rate(here: Path) -> None:
    output = simctl("info", "m.jsonl").output
    assert "100 of 100 rows" in output
    assert "prompt blocks found" in output
    assert "█" in output


def test_info_as_json_draws_the_page_and_stays_json(here: Path) -> None:
    result = simctl("info", "m.jsonl", "--json", "--picture", "m.html")
    found = json.loads(result.stdout)
    assert found["prefix_reuse"]["prompt_blocks"] == 200
    assert found["prefix_reuse"]["blocks"] == pytest.approx((99 + 93) / 200)
    page = (here / "m.html").read_text()
    assert "Prefix reuse" in page and "Plotly.newPlot" in page
    assert "Drew m.html" in result.stderr


def test_info_of_a_trace_of_one_request(here: Path) -> None:
    (here / "one.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n5,1,1\n")
    assert "1 of 1 rows" in simctl("info", "one.csv", "--picture", "one.html").output
    assert (here / "one.html").exists()


def test_the_page_escapes_what_the_trace_says(here: Path) -> None:
    name = "<script>alert(1)<&.csv"
    (here / name).write_text(VIDUR)
    simctl("info", name, "--picture", "x.html")
    assert "<script>alert" not in (here / "x.html").read_text()


def test_convert_takes_its_steps_and_keeps_the_counts(here: Path) -> None:
    output = simctl(
        "convert", "v.csv", "out.parquet", "--first-seconds", "50", "--stretch", "2", "--thin", "0.5"
    ).output
    back = read(here / "out.parquet")
    assert f"Wrote out.parquet: {len(back.requests)} requests of 200 rows, 100 dropped: not in the first 50 s" in output
    assert [next(iter(step)) for step in back.notes["scaling"]] == ["first_seconds", "time_stretch", "thin"]
    simctl("convert", "out.parquet", "twice.csv", "--copies", "2", "--seed", "4")
    assert len(read(here / "twice.csv").requests) == 2 * len(back.requests)


def test_convert_with_a_map_and_to_mooncake(here: Path) -> None:
    maps = ("arrival_ms=arrived_at", "prompt_tokens=num_prefill_tokens", "output_tokens=num_decode_tokens")
    simctl("convert", "v.csv", "out.csv", *(f"--map={pair}" for pair in maps))
    assert read(here / "out.csv").requests["arrival"][2] == pytest.approx(0.001)
    simctl("convert", "m.jsonl", "back.jsonl", "--to", "mooncake")
    assert (here / "back.jsonl").read_text().splitlines()[
        0
    ] == '{"timestamp":0,"input_length":1024,"output_length":3,"hash_ids":[0,1]}'


def test_convert_dequantises(here: Path) -> None:
    simctl("convert", "m.jsonl", "out.parquet", "--dequantise")
    back = read(here / "out.parquet")
    assert back.requests["arrival"].n_unique() == 100
    assert back.notes["dequantised"]["quantum_seconds"] == 3.0


def test_synth_writes_the_same_bytes_for_the_same_seed(here: Path) -> None:
    simctl("synth", "spec.yaml", "a.parquet", "--seed", "7")
    simctl("synth", "spec.yaml", "b.parquet", "--seed", "7")
    simctl("synth", "spec.yaml", "c.parquet", "--seed", "8")
    assert (here / "a.parquet").read_bytes() == (here / "b.parquet").read_bytes()
    assert (here / "a.parquet").read_bytes() != (here / "c.parquet").read_bytes()
    assert len(read(here / "a.parquet").requests) == 50
    assert "closed loop" in simctl("info", "a.parquet").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "none.csv"), "none.csv: cannot be read"),
        (("info", "v.csv", "--format", "azur"), "unknown format 'azur'"),
        (("info", "v.csv", "--format", "generic"), "needs a column map"),
        (("info", "v.csv", "--map", "arrival"), "found 'arrival', expected COLUMN=SOURCE"),
        (("info", "v.csv", "--picture", "no/x.html"), "no/x.html: cannot be written"),
        (("info", "negative.csv"), "data row 0 (from 0), column 'num_prefill_tokens': found '-4'"),
        (("info", "nan.csv"), "data row 0 (from 0), column 'arrived_at': found 'NaN'"),
        (("convert", "v.csv", "out.xlsx"), "expected .parquet, .csv or .jsonl"),
        (("convert", "v.csv", "out.csv", "--thin", "2"), "thin: found 2.0"),
        (("convert", "v.csv", "out.csv", "--dequantise"), "the clock is not coarse"),
        (("synth", "bad.yaml", "out.csv"), "unknown key 'arrivals.rat'"),
        (("synth", "none.yaml", "out.csv"), "none.yaml: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(here: Path, arguments: tuple[str, ...], message: str) -> None:
    header = VIDUR.splitlines()[0]
    (here / "negative.csv").write_text(f"{header}\n1,-4,1\n")
    (here / "nan.csv").write_text(f"{header}\nNaN,4,1\n")
    (here / "bad.yaml").write_text(SPEC.replace("burstiness: 0.5", "cv: 2, rat: 3"))
    before = {path.name for path in here.iterdir()}
    result = simctl(*arguments, code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("simctl: ")
    assert {path.name for path in here.iterdir()} == before


def test_sparkline_leaves_only_zero_blank() -> None:
    assert sparkline([0, 0.01, 7, 14]) == " ▁▅█"  # 3.5 rounds to even
    assert sparkline([0, 0]) == "  "
