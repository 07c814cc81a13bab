"""The committed figures of a GPU beside their targets: `python benchmarks/gpu_results.py [FOLDER]`, as Markdown.

Every figure is read, or computed, from the files of `validate/results/h100-sxm-80gb/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "validate" / "results" / "h100-sxm-80gb"
MODEL = "Llama-3.1-8B"
LOADS = ("low", "medium", "overload")
# Metric → the most that its error may be.
TARGETS = {
    "tpot.mean": 0.02,
    "tpot.p99": 0.05,
    "e2e.mean": 0.02,
    "e2e.p99": 0.05,
    "ttft.mean": 0.05,
    "ttft.p50": 0.05,
    "throughput.requests": 0.01,
}


def hardware(found: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What is measured, target, figure, and whether it is reached; `found` is `campaign.json`."""
    ceilings = found["parts"]["ceilings"]["found"]
    small = [step for step in ceilings["decode_steps"] if step["context"] == 1024]
    ratios = [step["ratio"] for step in small]
    low, high = (min(ratios), max(ratios))
    yield "decode step, batch 1 to 64, context 1024", "≤ 1.15 ×", f"{low:.2f} to {high:.2f} ×", high <= 1.15
    for step in ceilings["decode_steps"]:
        if step not in small:
            what = f"decode step, batch {step['sequences']}, context {step['context']}"
            yield what, "≤ 1.30 ×", f"{step['ratio']:.2f} ×", step["ratio"] <= 1.3
    shares = [step["share_of_matrix_rate"] for step in ceilings["prefill_steps"]]
    first, last = (ceilings["prefill_steps"][at]["tokens"] for at in (0, -1))
    figure = f"{min(shares):.0%} to {max(shares):.0%}"
    yield f"prefill of {first} to {last} tokens, of the matrix rate", "≥ 65 %", figure, min(shares) >= 0.65
    for name, facts in found["parts"]["shapes"]["found"]["scheduling"].items():
        gap = facts["gap_share"]
        yield f"gap between steps, 32 sequences, {name}", "≤ 3 %", f"{gap:.2%}", gap <= 0.03
    blocks = found["parts"]["check"]["found"]["kv_blocks"]
    error = blocks["predicted"] / blocks["measured"] - 1
    figure = f"{error:+.1%} ({blocks['predicted']:,} against {blocks['measured']:,})"
    yield "KV blocks, predicted against measured", "± 1 %", figure, abs(error) <= 0.01


def errors(folder: Path, load: str) -> dict[str, dict[str, float]]:
    """Policy → metric → predicted less measured, as a share of what was measured."""
    path = folder / "check" / f"{MODEL}.{load}.validation.json"
    found = json.loads(path.read_text(encoding="utf-8"))["policies"]
    return {policy["name"]: {name: policy["metrics"][name]["error"] for name in TARGETS} for policy in found}


def markdown(folder: Path) -> str:
    campaign = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))
    lines = ["| measured | target | figure | |", "| --- | --: | --: | --- |"]
    for what, target, figure, reached in hardware(campaign):
        lines.append(f"| {what} | {target} | {figure} | {'reached' if reached else 'missed'} |")
    heads = " | ".join(f"{name} (± {target:.0%})" for name, target in TARGETS.items())
    lines += ["", f"| load, policy | {heads} |", "| --- |" + " --: |" * len(TARGETS)]
    for load in LOADS:
        for policy, of_policy in errors(folder, load).items():
            cells = [
                f"{error:+.1%}" if abs(error) <= TARGETS[name] else f"**{error:+.1%}**"
                for name, error in of_policy.items()
            ]
            lines.append(f"| {load}, {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
