"""simctl called as a user types it, and a small scenario to call it with."""

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from simctl import main

TABLE = "arrival,prompt_tokens,output_tokens\n" + "".join(f"{0.1 * i},{100 + i},{5 + i % 7}\n" for i in range(20))
SCENARIO: dict[str, Any] = {
    "trace": {"file": "trace.csv", "columns": {name: name for name in ("arrival", "prompt_tokens", "output_tokens")}},
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "slo": {"ttft": 0.5},
}


def write_scenario(folder: Path) -> None:
    """`s.yaml` and its `trace.csv`."""
    (folder / "trace.csv").write_text(TABLE)
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))


def simctl(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments: str) -> str:
    """What a user's mistake says: one line."""
    result = simctl(*arguments, code=2)
    assert result.stderr.startswith("simctl: ") and result.stderr.count("\n") == 1 and not result.stdout
    return result.stderr
