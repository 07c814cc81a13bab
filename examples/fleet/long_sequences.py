"""When the ranks of an engine talk longer than they compute, and what overlap and pipelines of chunks give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gallery import Exhibit, lines
from scenarios import seconds, share

from calibrate.model import load_model
from calibrate.pipeline_latency import PipelineLatency
from calibrate.profile import load_profile
from sim.study.deployment import deploy_profile
from sim.study.long_sequences import Growth, chunk_table, growth
from sim.study.scenario import EngineSettings

MODEL, DEVICE = "Llama-3.1-70B", "datasheet:h100-sxm-80gb"
LINKS: dict[str, dict[str, Any]] = {
    "NVLink (measured table)": {},
    "200 GB/s": {"link": {"bandwidth": 200e9, "latency": 2e-6}},
    "50 GB/s": {"link": {"bandwidth": 50e9, "latency": 5e-6}},
}
LONGEST = 32_768
CHUNKS = [LONGEST, 8192, 2048, 512]

TEXT = """\
A prompt of Llama-3.1-70B alone on eight H100. What ranks exchange grows with its tokens, attention with their square:
between slow links communication overtakes computing at some length, and falls behind again. Computed in two halves, one
half's exchange hides behind the other half's kernels. Over four pairs in a pipeline, chunks of one prompt are under way
at once.
"""


def run() -> Exhibit:
    model = load_model(MODEL)
    profile = load_profile(DEVICE, model, 8, Path())
    found = {name: growth(EngineSettings(tensor_parallel=8, **link), model, profile) for name, link in LINKS.items()}
    rows = [_told(name, one) for name, one in found.items()]
    deployment = deploy_profile(
        EngineSettings(tensor_parallel=2, pipeline_parallel=4), model, load_profile(DEVICE, model, 2, Path())
    )
    assert isinstance(deployment.step_times, PipelineLatency)
    for row in chunk_table(deployment.step_times, LONGEST, CHUNKS).iter_rows(named=True):
        name = f"four stages of two, chunks of {row['chunk']:,}"
        rows.append((name, "", "", f"{seconds(row['seconds'])} ({share(row['bubble'])} bubble)", ""))
    slow = found["50 GB/s"].rows
    curves = {
        name: (slow["tokens"].to_list(), slow[column].to_list())
        for name, column in (
            ("computing", "compute"),
            ("communication", "communication"),
            ("communication left exposed by overlap", "halves_exposed"),
        )
    }
    figure = lines(curves, "tokens of the prompt", "seconds", xaxis_type="log", yaxis_type="log")
    header = ["links", "overtakes at", "falls behind at", f"{LONGEST:,} tokens", "with overlap"]
    return Exhibit(
        "Long sequences: communication against computing",
        TEXT,
        header,
        rows,
        [(figure, "One prompt on eight H100 over links of 50 GB/s.")],
    )


def _told(name: str, found: Growth) -> tuple[str, str, str, str, str]:
    longest = found.rows.filter(found.rows["tokens"] == LONGEST).row(0, named=True)
    return (
        name,
        f"{found.overtakes_at:,} tokens" if found.overtakes_at else "never",
        f"{found.falls_behind_at:,} tokens" if found.falls_behind_at else "",
        seconds(longest["whole"]),
        seconds(longest["halves"]),
    )
