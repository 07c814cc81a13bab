"""docs/traces.md says what the code does: its table of columns, its formats, its spec."""

import re
from pathlib import Path

import yaml

from traces.checks import check
from traces.loading import formats
from traces.source import TraceSource
from traces.synth import generate, load_spec
from traces.table import COLUMNS

TEXT = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")


def test_the_table_of_columns_is_the_contract() -> None:
    rows = [f"| `{name}` | {dtype} | {meaning} |" for name, (dtype, meaning) in COLUMNS.items()]
    assert "\n".join(["| --- | --- | --- |", *rows, ""]) in TEXT


def test_every_format_is_described() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|$", TEXT, flags=re.MULTILINE)) >= set(formats())


def test_the_spec_of_the_text_can_be_drawn(tmp_path: Path) -> None:
    (spec,) = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL) if "arrivals:" in block]
    (tmp_path / "chat.yaml").write_text(spec)
    trace = generate(load_spec(tmp_path / "chat.yaml"), seed=7)
    check(trace)
    assert len(trace.requests) == 1000
    assert trace.requests["turn"].max() > 0  # type: ignore[operator]


def test_the_source_of_the_text_is_valid() -> None:
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL) if "trace:" in block]
    assert TraceSource.model_validate(yaml.safe_load(block)["trace"]).dequantise
