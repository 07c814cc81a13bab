"""Predict a real OpenVINO GenAI on this CPU: `python benchmarks/openvino_genai.py --python V/bin/python [--json]`.

Writes a tiny Llama of random weights as GGUF and serves it by OpenVINO GenAI's continuous batching, in the interpreter
named. `--repeats` times over it times lone steps, prefills by length and decodes by batch and context, and serves one
Poisson trace in real time; they take turns, so that both see the same machine. A profile made of the lone steps alone
predicts the trace. Prints the errors beside the spread of the repeats, which is the noise that no prediction can beat.

The engine has one core to itself, where there are two. Every repeat has the same arrivals and lengths but fresh tokens.
On a machine that others use too, `--clock process` times the engine by its own CPU time instead of the wall clock.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
from gguf_file import write_gguf
from lone_steps import LoneSteps
from machine import busy_seconds, cpu_name
from rich.console import Console
from rich.table import Table
from vllm_cpu import LENGTHS, SHOWN, over_repeats

from calibrate.latency import StepLatency
from calibrate.model import ModelShape, load_model
from calibrate.profile import Profile
from ground.errors import UserError
from sim.fleet.equal_replicas import equal_replicas
from sim.results.display import metric_text, seconds, share
from sim.results.metric_names import METRICS, metric
from sim.results.metrics import compute
from sim.results.recorder import StepRecorder
from sim.results.slo import Slo
from sim.study.deployment import deploy_profile
from sim.study.scenario import EngineSettings
from traces.synth import SynthSpec, generate
from traces.table import Trace
from validate.prompts import prompt_of
from validate.recording import Lateness, request_table

MODEL = "tiny-llama"
# What its scheduler is told, and ours; its blocks hold 32 tokens on a CPU.
LIMITS = {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "kv_blocks": 1024}
BLOCK_SIZE = 32
# The grid covers what the trace asks: prompts of up to 1024 tokens, of which a step may hold several.
PREFILLS = (32, 64, 128, 256, 512, 1024, 2048)
DECODES = tuple((batch, context) for batch in (1, 2, 4, 8, 16, 32) for context in (64, 256, 768))
HELD_OUT_PREFILLS = (96, 384, 768)
HELD_OUT_DECODES = ((3, 160), (6, 512), (12, 384))
PREFILL_PASSES, DECODE_STEPS = 5, 18
SETTLING = 1  # decode steps behind a prefill that are not counted: the library prepares itself for another batch

HOW_TO_INSTALL = (
    "make an environment for it: python3 -m venv V && V/bin/pip install openvino-genai==2026.4.1.0, "
    "then --python V/bin/python"
)


class OpenVino:
    """The engine's process, to which one line is said and from which one comes back."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises UserError: the process ended instead of answering; says its last line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = [text for text in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if text]
            raise UserError(f"OpenVINO GenAI ended: {said[-1].strip() if said else 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def serve(python: Path, model: ModelShape, core: int | None, clock: str) -> Iterator[tuple[OpenVino, dict[str, str]]]:
    """A running engine and its versions; whatever happens it is ended and what it wrote is removed.

    Raises:
        UserError: the interpreter cannot be started or has no openvino-genai.
    """
    with tempfile.TemporaryDirectory(prefix="simctl-openvino-") as name:
        folder = Path(name)
        write_gguf(folder / "model.gguf", model)
        # Isolated: the script's own folder has a module of the library's name.
        command = [str(python.absolute()), "-I", str(Path(__file__).with_name("openvino_engine.py"))]
        log = folder / "log"
        with log.open("wb") as errors:
            try:
                process = subprocess.Popen(
                    command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
                )
            except OSError as error:
                raise UserError(f"--python {python}: cannot be started ({error.strerror}); {HOW_TO_INSTALL}") from error
        try:
            engine = OpenVino(process, log)
            start = {"gguf": str(folder / "model.gguf"), "vocabulary": model.vocab, "core": core, "clock": clock}
            try:
                versions = engine.ask(**start, **LIMITS, threads=1)
            except UserError as error:
                raise UserError(f"--python {python}: {error.format_message()}; {HOW_TO_INSTALL}") from error
            yield engine, versions
        finally:
            process.kill()
            process.communicate()


class Calibration:
    """Samples of lone steps, put together over rounds."""

    def __init__(self) -> None:
        self._prefills: dict[int, list[float]] = defaultdict(list)
        self._decodes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)  # (cached tokens, seconds)
        self.unsettled: list[float] = []  # seconds that a decode step behind another batch took beyond the others

    def round(self, engine: OpenVino) -> None:
        """Visit every point once more. Prompts take turns, so that each follows another length, as in service."""
        prompts: dict[int, list[float]] = defaultdict(list)
        for _ in range(PREFILL_PASSES):
            for tokens in sorted((*PREFILLS, *HELD_OUT_PREFILLS)):
                prompts[tokens].append(engine.ask(measure="prefill", tokens=tokens)["seconds"])
        for tokens, samples in prompts.items():
            self._prefills[tokens].append(median(samples))
        for batch, context in (*DECODES, *HELD_OUT_DECODES):
            answer = engine.ask(measure="decode", batch=batch, context=context, steps=SETTLING + DECODE_STEPS)
            settled = answer["seconds"][SETTLING:]
            self._decodes[batch, context].append((mean(answer["cached"][SETTLING:]) / batch, median(settled)))
            self.unsettled.append(mean(answer["seconds"][:SETTLING]) - median(settled))

    def steps(self, prefills: Sequence[int], decodes: Sequence[tuple[int, int]]) -> LoneSteps:
        """The mean of the rounds, of each of which a point gave its median; so they stand for the same time as the mean
        of the replays. A decode batch stands at the mean context of its counted steps."""
        return LoneSteps(
            {tokens: mean(self._prefills[tokens]) for tokens in prefills},
            {
                (point[0], mean(cached for cached, _ in self._decodes[point])): mean(
                    seconds for _, seconds in self._decodes[point]
                )
                for point in decodes
            },
        )


def held_out_errors(profile: Profile, steps: LoneSteps) -> list[dict[str, Any]]:
    """Lone steps that the profile does not know, as it predicts them."""
    latency = StepLatency(profile, profile.shape)
    asked: list[tuple[str, float, float]] = [
        (f"prefill of {n}", latency.step([(n, 0)], 0, 0), measured) for n, measured in steps.prefills.items()
    ]
    asked += [
        (f"decode of {n} at {context:.0f}", latency.step([], n, round(n * context)), measured)
        for (n, context), measured in steps.decodes.items()
    ]
    return [
        {"step": name, "predicted": predicted, "measured": measured, "error": predicted / measured - 1}
        for name, predicted, measured in asked
    ]


def predict(trace: Trace, model: ModelShape, profile: Profile) -> tuple[dict[str, float | None], dict[str, int]]:
    """The metrics that the simulator gives, and how many look-ups lay outside the measured grid."""
    settings = EngineSettings(preset="reference", block_size=BLOCK_SIZE, enable_prefix_caching=False, **LIMITS)
    deployment = deploy_profile(settings, model, profile)
    run = equal_replicas(
        trace.requests, deployment.config, deployment.step_times, replicas=1, router="round_robin"
    ).run()
    metrics = compute(run.requests, run.steps, slo=Slo(), gpus=None, gpu_hour_price=None, kv_blocks_total=None)
    outside = {name: count for name, count in deployment.step_times.extrapolated.items() if count}
    return {name: metric(metrics, name) for name in SHOWN}, outside


def measure(engine: OpenVino, trace: Trace, *, vocabulary: int, seed: int) -> dict[str, Any]:
    """Serve the trace once, with tokens of this seed only.

    Returns the metrics, how late an idle engine woke, steps and their seconds, and `others`: the share of the machine's
    CPU time that went to anything but the engine and this process.
    """
    rows = trace.requests.sort("arrival", "request_id").to_dicts()
    requests = [
        {
            "due": row["arrival"],
            "prompt": prompt_of(row, vocabulary=vocabulary, seed=seed),
            "output_tokens": row["output_tokens"],
        }
        for row in rows
    ]
    began, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
    answer = engine.ask(measure="replay", requests=requests)
    wall, busy, own = time.perf_counter() - began, busy_seconds() - busy, time.process_time() - own
    table = request_table(_request_row(row, *one) for row, one in zip(rows, answer["requests"], strict=True))
    unseen = StepRecorder().take_table()
    metrics = compute(table, unseen, slo=Slo(), gpus=None, gpu_hour_price=None, kv_blocks_total=None)
    return {
        "metrics": {name: metric(metrics, name) for name in SHOWN},
        "lateness": asdict(Lateness.of(answer["late"])),
        "steps": answer["steps"],
        "step_seconds": answer["busy"],
        "others": max(0.0, busy - own - answer["cpu"]) / (wall * (os.cpu_count() or 1)),
    }


def _request_row(row: dict[str, Any], first_token: float, finish: float, tokens: int) -> dict[str, Any]:
    given = {name: row[name] for name in ("request_id", "arrival", "prompt_tokens")}
    seen = {"replica": 0, "first_token": first_token, "finish": finish, "output_tokens": tokens, "status": "finished"}
    return given | seen | {"first_scheduled": None, "cached_tokens": None, "preemptions": None}


def compare(predicted: dict[str, float | None], repeats: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of each metric the prediction, the mean of the repeats, the error and the spread, as shares of that mean."""
    compared = {}
    for name, over in over_repeats(repeats).items():
        value, measured = predicted[name], over["mean"]
        error = value / measured - 1 if value is not None and measured else None
        compared[name] = {"predicted": value, "measured": measured, "error": error, "spread": over["spread"]}
    return compared


def show(result: dict[str, Any]) -> None:
    table = Table("metric", "predicted", "measured", "error", "spread of repeats")
    for name, row in result["summary"].items():
        value, measured = (metric_text(name, row[side]) for side in ("predicted", "measured"))
        error = "–" if row["error"] is None else f"{row['error']:+.1%}"
        table.add_row(METRICS[name].label, value, measured, error, share(row["spread"]))
    table.add_section()
    repeats = result["repeats"]
    late = max(repeat["lateness"]["p99"] for repeat in repeats)
    table.add_row("lateness of arrivals, p99, worst", "", seconds(late), "", "")
    table.add_row("first step of another batch, beyond", "0 s", seconds(result["unsettled"]), "", "")
    table.add_row("CPU time of other processes", "", " ".join(share(repeat["others"]) for repeat in repeats), "", "")
    Console().print(table)
    steps = Table("lone step held out", "predicted", "measured", "error")
    for step in result["held_out"]:
        steps.add_row(step["step"], seconds(step["predicted"]), seconds(step["measured"]), f"{step['error']:+.1%}")
    Console().print(steps)
    click.echo(", ".join(f"{name} {value}" for name, value in result["versions"].items()) + f", on {result['cpu']}")


@click.command()
@click.option(
    "--python", type=click.Path(path_type=Path), envvar="SIMCTL_OPENVINO_PYTHON", help="Python that has openvino-genai."
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=40, show_default=True, help="Requests of a replay.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=6.0, show_default=True, help="Requests a second."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the trace.")
@click.option("--clock", type=click.Choice(["wall", "process"]), default="wall", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(python: Path | None, repeats: int, requests: int, rate: float, seed: int, clock: str, as_json: bool) -> None:
    """Predict OpenVINO GenAI from its lone steps and report the error beside the noise."""
    if python is None:
        raise UserError(f"--python is missing, and SIMCTL_OPENVINO_PYTHON is not set; {HOW_TO_INSTALL}")
    model = load_model(MODEL)
    spec = {"requests": requests, "arrivals": {"process": "poisson", "rate": rate}, "lengths": LENGTHS}
    trace = generate(SynthSpec.model_validate(spec), seed)
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores[:-1]))
    calibration, measured = Calibration(), []
    with serve(python, model, core, clock) as (engine, versions):
        click.echo("warming up", err=True)
        measure(engine, trace, vocabulary=model.vocab, seed=1000 * seed)
        for repeat in range(1, repeats + 1):
            click.echo(f"repeat {repeat} of {repeats}", err=True)
            calibration.round(engine)
            measured.append(measure(engine, trace, vocabulary=model.vocab, seed=1000 * seed + repeat))
    known = calibration.steps(PREFILLS, DECODES)
    profile = known.profile(model, name="openvino-lone-steps", device=cpu_name(), versions=versions, threads=1)
    predicted, outside = predict(trace, model, profile)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "versions": versions | {"client's python": platform.python_version()},
        "clock": clock,
        "model": MODEL,
        "limits": LIMITS | {"block_size": BLOCK_SIZE},
        "trace": spec | {"seed": seed},
        "prefills": {str(tokens): value for tokens, value in known.prefills.items()},
        "decodes": [[batch, context, value] for (batch, context), value in known.decodes.items()],
        "unsettled": median(calibration.unsettled),
        "held_out": held_out_errors(profile, calibration.steps(HELD_OUT_PREFILLS, HELD_OUT_DECODES)),
        "extrapolated": outside,
        "repeats": measured,
        "summary": compare(predicted, measured),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        show(result)


if __name__ == "__main__":
    main()
