"""How well real vLLM runs are predicted from the kernels of their GPUs: `python benchmarks/fidelity.py --data DIR`.

For every run under DIR/runs (and, one level down, under its folders) the engine's arguments are read, its KV blocks are
predicted, the run is simulated from the kernel profile of its GPU, and the prediction is set beside the measurement.
Nothing of a measured run but its workload, its arrival times and its engine arguments goes into a prediction.

`--kv-blocks measured` copies the engine's block count, and `--ablate` switches one mechanism off: so one sees what each
is worth. `--steps` prints step times of Llama 3.1 on an H100 from AIConfigurator's tables instead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import polars as pl

from calibrate.importers.llmservingsim import read as read_profile
from calibrate.latency import StepLatency
from calibrate.model import load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile
from ground.errors import UserError
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.results import metrics
from sim.results.folder import Run
from sim.results.slo import Slo
from sim.results.tables import STEPS
from sim.study.deployment import Deployment, deploy_profile
from validate.comparison import compare
from validate.vllm_bench import BenchRun, engine_settings, read_bench_run

# Where `--data` names no folder: measured runs lie in its `groundtruth`.
DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

# What a mechanism is switched off by.
ABLATIONS: dict[str, dict[str, Any]] = {
    "async": {"async_scheduling": False},
    "skew": {"model_skew": False},
    "padding": {"cudagraph_capture_sizes": ()},
    "prefix": {"enable_prefix_caching": False},
}
_LATENCIES = ("ttft", "tpot", "e2e")
_STATISTICS = ("mean", "p50", "p90", "p99")


def find_runs(data: Path) -> Iterator[Path]:
    """Every run folder under `data`, its own or one level down.

    Raises:
        UserError: there is none.
    """
    found = [
        folder
        for root in (data, *sorted(path for path in data.iterdir() if path.is_dir()))
        for folder in ([*sorted((root / "runs").glob("*"))] if (root / "runs").is_dir() else [root])
        if (folder / "workload.parquet").is_file()
    ]
    if not found:
        raise UserError(f"{data}: no run found; expected runs/NAME/workload.parquet")
    yield from dict.fromkeys(found)


def find_profile(folder: Path, run: BenchRun) -> Profile:
    """The kernel profile of a run's GPU and model: `profile/` in its folder, or `profiles/HARDWARE/MODEL/VARIANT`.

    Raises:
        UserError: there is none.
    """
    if (folder / "profile").is_dir():
        profile = read_profile(str(folder / "profile"), load_model(folder / "model.json"), run.tensor_parallel)
    else:
        root = folder.parent.parent
        model = root / "profiles" / run.hardware / run.model
        variants = sorted(path for path in model.glob("*") if path.is_dir())
        if not variants:
            raise UserError(f"{model}: no such profile, which run {run.name} needs")
        profile = read_profile(str(variants[0]), None, run.tensor_parallel)
    return replace(profile, device_memory=run.device_memory or profile.device_memory)


def predict(run: BenchRun, profile: Profile, changes: dict[str, Any]) -> tuple[FleetRun, Deployment, float]:
    """The simulated run, what it was simulated with, and the seconds that compiling and simulating took."""
    shared = run.data_parallel if profile.shape.experts else 1
    settings = engine_settings(run, data_parallel=shared, **changes)
    start = time.perf_counter()
    deployment = deploy_profile(settings, profile.shape, profile)
    fleet = equal_replicas(
        run.trace.requests,
        deployment.config,
        deployment.step_times,
        replicas=run.data_parallel // shared,
        router="least_outstanding",
    )
    return fleet.run(), deployment, time.perf_counter() - start


def evaluate(folder: Path, blocks: str, ablation: str | None) -> dict[str, Any]:
    """One run: predicted beside measured, as `--json` prints it."""
    run = read_bench_run(folder)
    profile = find_profile(folder, run)
    changes = dict(ABLATIONS[ablation]) if ablation else {}
    if blocks == "measured" and run.kv_blocks is not None:
        changes["kv_blocks"] = run.kv_blocks
    elif profile.device_memory is None:
        raise UserError(f"{folder}: neither the run nor a datasheet says how much memory {profile.device} has")
    result, deployment, seconds = predict(run, profile, changes)
    predicted = _as_run(result.requests, result.steps, deployment)
    numbers = {name: (value, run.means.get(name)) for name, value in _numbers(predicted).items()}
    ape: dict[str, dict[str, float | None]] = {name: {"mean": None, "p50": None} for name in _LATENCIES}
    if run.requests is not None:
        measured = _as_run(run.requests.drop("unqueued"), pl.DataFrame(schema=STEPS), None)
        theirs = _numbers(measured)
        numbers = {name: (value, theirs[name]) for name, (value, _) in numbers.items()}
        unqueued = run.requests["unqueued"]
        numbers["unqueued_ttft_p50"] = (
            predicted.requests.filter(unqueued)["ttft"].median(),
            measured.requests.filter(unqueued)["ttft"].median(),
        )
        errors = compare(predicted, [measured]).ape
        ape = {name: {"mean": errors[name].mean, "p50": errors[name].p50} for name in _LATENCIES}
    return {
        "run": run.name,
        "seconds": round(seconds, 4),
        "kv_blocks": {
            "predicted": deployment.config.kv_blocks if "kv_blocks" not in changes else None,
            "measured": run.kv_blocks,
        },
        "metrics": {
            name: {"predicted": value, "measured": known, "error": value / known - 1 if value and known else None}
            for name, (value, known) in numbers.items()
        },
        "ape": ape,
        "assumptions": [
            {"name": one.name, "value": one.value, "unit": one.unit, "source": one.source, "note": one.note}
            for one in deployment.assumptions
        ],
        "extrapolated": dict(deployment.step_times.extrapolated),
    }


def _as_run(requests: pl.DataFrame, steps: pl.DataFrame, deployment: Deployment | None) -> Run:
    numbers = metrics.compute(
        requests, steps, slo=Slo(), gpus=None, gpu_hour_price=None,
        kv_blocks_total=deployment.config.kv_blocks if deployment else None,
    )  # fmt: skip
    return Run(requests, steps, numbers, {}, [])


def _numbers(run: Run) -> dict[str, Any]:
    return {
        "output_tok_s": run.metrics["throughput"]["output_tokens"],
        **{f"{name}_{stat}": run.metrics[name][stat] for name in _LATENCIES for stat in _STATISTICS},
    }


def step_times() -> list[dict[str, Any]]:
    """Step times in milliseconds of Llama 3.1 on H100s, from AIConfigurator's vLLM tables.

    Raises:
        UserError: the package is not installed.
    """
    from calibrate.importers.aiconfigurator import read as read_library
    from calibrate.kernel_library import library_profile

    library = read_library("h100_sxm/vllm/0.24.0", None, None)
    rows = []
    for name, degrees in (("Llama-3.1-8B", (1, 2, 4, 8)), ("Llama-3.1-70B", (2, 4, 8))):
        model = load_model(name)
        for tp in degrees:
            latency = StepLatency(library_profile(library, model, tp), model, parallelism=Parallelism(tp))
            steps = [("prefill", 1, tokens, latency.step([(tokens, 0)], 0, 0)) for tokens in (128, 512, 2048, 8192)]
            steps += [
                ("decode", batch, context, latency.step((), batch, batch * context))
                for batch in (1, 8, 32, 128)
                for context in (1024, 4096)
            ]
            rows += [
                {"model": name, "tp": tp, "phase": phase, "batch": batch, "tokens": tokens, "ms": seconds * 1e3}
                for phase, batch, tokens, seconds in steps
            ]
    return rows


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with runs and profiles."
)
@click.option("--run", "only", metavar="NAME", help="Only the run of this name.")
@click.option("--kv-blocks", type=click.Choice(["predicted", "measured"]), default="predicted", show_default=True)
@click.option("--ablate", type=click.Choice(list(ABLATIONS)), help="Switch one mechanism off.")
@click.option("--steps", is_flag=True, help="Step times from AIConfigurator's H100 tables instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(data: Path | None, only: str | None, kv_blocks: str, ablate: str | None, steps: bool, as_json: bool) -> None:
    """Predict measured runs from the kernels of their GPUs."""
    if steps:
        rows = step_times()
        if as_json:
            click.echo(json.dumps({"steps": rows}, indent=2))
            return
        for row in rows:
            batch = f"{row['batch']} × {row['tokens']}"
            click.echo(f"{row['model']:14} tp{row['tp']} {row['phase']:8} {batch:>12} {row['ms']:9.3f} ms")
        return
    if data is None:
        data = DATA / "groundtruth"
        if not data.is_dir():
            click.echo(f"skipped, {data} is not there (give --data or set SIMCTL_DATA)")
            return
    folders = [folder for folder in find_runs(data) if only in (None, folder.name)]
    if not folders:
        raise UserError(f"--run {only}: no such run in {data}")
    results = [evaluate(folder, kv_blocks, ablate) for folder in folders]
    if as_json:
        click.echo(json.dumps({"runs": results}, indent=2))
    else:
        for result in results:
            _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    blocks = result["kv_blocks"]
    table = Table(
        "metric", "predicted", "measured", "error",
        title=f"{result['run']}: {result['seconds']:.2f} s; KV blocks {blocks['predicted']} predicted, "
        f"{blocks['measured']} measured",
        title_justify="left",
    )  # fmt: skip
    for name, row in result["metrics"].items():
        shown = [f"{row[key]:,.4f}" if row[key] is not None else "–" for key in ("predicted", "measured")]
        table.add_row(name, *shown, f"{row['error']:+.2%}" if row["error"] is not None else "–")
    for name, row in result["ape"].items():
        if row["mean"] is not None:
            table.add_row(f"{name} per request", "", "", f"mean {row['mean']:.2%}, p50 {row['p50']:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
