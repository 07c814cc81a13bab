"""docs/traces.md says what the code does: its table of columns, its formats, its spec."""

import re
from pathlib import Path

import yaml

from ground.spec import check_spec
from traces.checks import check
from traces.loading import formats
from traces.source import TraceSource
from traces.synth import SynthSpec, generate, load_spec
from traces.synth.arrivals_text import parse_arrivals
from traces.table import COLUMNS

TEXT = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_table_of_columns_is_the_contract() -> None:
    rows = [f"| `{name}` | {dtype} | {meaning} |" for name, (dtype, meaning) in COLUMNS.items()]
    assert "\n".join(["| --- | --- | --- |", *rows, ""]) in TEXT


def test_every_format_is_described() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|$", TEXT, flags=re.MULTILINE)) >= set(formats())


def test_the_spec_of_the_text_can_be_drawn(tmp_path: Path) -> None:
    (spec,) = [block for block in YAML if block.startswith("requests:")]
    (tmp_path / "chat.yaml").write_text(spec)
    trace = generate(load_spec(tmp_path / "chat.yaml"), seed=7)
    check(trace)
    assert len(trace.requests) == 1000
    assert trace.requests["turn"].max() > 0  # type: ignore[operator]


def test_the_source_of_the_text_is_valid() -> None:
    (block,) = [block for block in YAML if "trace:" in block]
    assert TraceSource.model_validate(yaml.safe_load(block)["trace"]).dequantise
    described = yaml.safe_load(block.replace("# session_arrivals", "session_arrivals"))
    assert TraceSource.model_validate(described["trace"]).session_arrivals is not None


def test_the_client_mix_of_the_text_is_valid() -> None:
    (block,) = [block for block in YAML if "clients:" in block]
    every_key = block.replace("# only", "only").replace("# without", "without")
    for text in (block, every_key):
        spec = check_spec(SynthSpec, yaml.safe_load(text), "docs/traces.md")
        assert spec.clients is not None and spec.clients.rate == 5


def test_the_session_arrivals_of_the_text_can_be_read() -> None:
    written = re.findall(r"`((?:poisson|gamma|on-off):[^`]+)`", TEXT)
    assert len(written) == 3
    for text in written:
        parse_arrivals(text, "--session-arrivals")
