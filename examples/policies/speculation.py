"""Speculative decoding by prompt lookup on the real engine: what it gains, and what the simulator said it would.

    simctl validate train -o model
    simctl calibrate run --device cpu --model model/config.json -o profile
    python examples/policies/speculation.py model profile

Prompts are the beginnings of texts that the model was not trained on; it goes on greedily, so every policy gives the
same tokens. How often drafts are accepted is measured first; then the simulator is told, and predicts the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from gallery import Exhibit

from calibrate.decoder import Decoder, dtype_of
from calibrate.model import ModelShape, load_model
from calibrate.profile import Profile, load_profile
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.study.deployment import deploy_profile
from sim.study.scenario import EngineSettings
from traces.table import COLUMNS, Trace
from validate.engine.engine import Engine
from validate.quality.text import python_text

PROMPT, OUTPUT, REQUESTS = 96, 96, 8
REPEATS = 3
BATCHES = (1, 8)
DRAFTS = (2, 4)
KV_BLOCKS = 512

TEXT = """\
A model of a million weights, trained on Python's own documentation, goes on with texts that it has not seen; drafts are
what followed the same bytes before. Left to itself it soon repeats what it said, so nearly all drafts are accepted. A
step that verifies them takes longer than one that does not, and the more so the more sequences it has: so drafts gain
less there. The gain is that of the time to answer all requests; both are medians over the repeats.
"""


@dataclass(frozen=True)
class Measured:
    seconds: float
    facts: dict[str, Any]
    outputs: dict[int, list[int]]


def run(weights: Path, profile_folder: Path) -> Exhibit:
    torch.set_num_threads(1)
    model = load_model(str(weights / "config.json"))
    profile = load_profile(str(profile_folder), model, 1, Path())
    trace, prompts = _requests()
    decoder = Decoder(model, dtype=dtype_of(model), kv_blocks=KV_BLOCKS, weights=weights)
    rows = []
    for batch in BATCHES:
        policies: list[dict[str, Any] | None] = [None, *(_lookup(tokens) for tokens in DRAFTS)]
        plain, *others = _measure_all(decoder, model, trace, prompts, batch, policies)
        expected = _predict(profile, model, trace, batch, None)
        for policy, found in zip(policies[1:], others, strict=True):
            assert policy is not None and found.outputs == plain.outputs, "drafts change no token"
            names = ("acceptance", "proposals", "host_seconds")
            fed = {name: yaml.safe_load(str(found.facts[f"speculative.{name}"])) for name in names}
            predicted = _predict(profile, model, trace, batch, policy | fed)
            accepted = found.facts["speculative.accepted"] / max(1, found.facts["speculative.drafted"])
            rows.append(
                (
                    str(batch),
                    str(policy["tokens"]),
                    f"{accepted:.0%} of {fed['proposals']:.0%}",
                    f"{plain.seconds / found.seconds:.2f} ×",
                    f"{expected / predicted:.2f} ×",
                    f"{found.seconds:.2f} s",
                    f"{predicted:.2f} s",
                )
            )
    gain, time = ["gain measured", "gain predicted"], ["time measured", "time predicted"]
    header = ["sequences", "drafts", "accepted, of steps", *gain, *time]
    return Exhibit("Speculative decoding by prompt lookup", TEXT, header, rows)


def _lookup(tokens: int) -> dict[str, Any]:
    return {"tokens": tokens, "prompt_lookup_min": 4, "prompt_lookup_max": 8}


def _requests() -> tuple[Trace, dict[int, list[int]]]:
    """All at once: the beginnings of held-out documents."""
    texts = [list(document.text[:PROMPT]) for document in python_text().held_out if len(document.text) > PROMPT]
    columns = {
        "request_id": list(range(REQUESTS)),
        "arrival": [0.0] * REQUESTS,
        "prompt_tokens": [PROMPT] * REQUESTS,
        "output_tokens": [OUTPUT] * REQUESTS,
        "parent": [None] * REQUESTS,
        "think_time": [None] * REQUESTS,
    }
    requests = pl.DataFrame(columns, schema={name: COLUMNS[name][0] for name in columns})
    return Trace(requests, "text", "held-out documents", REQUESTS), dict(enumerate(texts[:REQUESTS]))


def _settings(batch: int, speculative: dict[str, Any] | None) -> EngineSettings:
    return EngineSettings.model_validate(
        {"preset": "reference", "kv_blocks": KV_BLOCKS, "max_num_seqs": batch, "speculative": speculative}
    )


def _measure_all(
    decoder: Decoder,
    model: ModelShape,
    trace: Trace,
    prompts: dict[int, list[int]],
    batch: int,
    policies: Sequence[dict[str, Any] | None],
) -> list[Measured]:
    """Each policy's median; they take turns, so that a machine that slows down slows all of them."""
    found: list[list[Measured]] = [[] for _ in policies]
    for _ in range(REPEATS):
        for policy, own in zip(policies, found, strict=True):
            config = EngineConfig(kv_blocks=KV_BLOCKS, **_settings(batch, policy).limits)
            engine = Engine(config, decoder, vocabulary=model.vocab)
            recording = engine.replay(trace, prompts=prompts)
            seconds = float(recording.requests["finish"].max())  # type: ignore[arg-type]
            own.append(Measured(seconds, recording.engine, engine.outputs))
    return [Measured(median(one.seconds for one in own), own[0].facts, own[0].outputs) for own in found]


def _predict(
    profile: Profile, model: ModelShape, trace: Trace, batch: int, speculative: dict[str, Any] | None
) -> float:
    deployment = deploy_profile(_settings(batch, speculative), model, profile)
    result = equal_replicas(trace.requests, deployment.config, deployment.step_times).run()
    return float(result.requests["finish"].max())  # type: ignore[arg-type]


if __name__ == "__main__":
    from rich.console import Console
    from rich.table import Table

    exhibit = run(Path(sys.argv[1]), Path(sys.argv[2]))
    table = Table(*exhibit.header, title=exhibit.title, title_justify="left", box=None, header_style="bold")
    for row in exhibit.rows:
        table.add_row(*row)
    Console().print(table)
