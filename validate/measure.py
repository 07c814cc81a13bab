"""A measured run: replay a trace on the real engine, and write it as the simulator writes its own."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibrate.model import ModelShape
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.results.folder import Run, read_run, write_run
from sim.results.metrics import compute
from sim.results.slo import Slo
from traces.table import Trace
from validate.recording import Lateness, Recording

# Beside the run's own files: what only a measured run has. It is written last, so it marks a finished one.
_MEASUREMENT = "measurement.json"


def measure_reference(
    trace: Trace,
    config: EngineConfig,
    model: ModelShape,
    *,
    device: str = "cpu",
    threads: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    on_finish: Callable[[], None] = lambda: None,
) -> Recording:
    """Replay `trace` in real time on our own engine with a decoder of `model`, random or with `weights`.

    Raises:
        UserError: torch is not installed, there is no such device, the model cannot be run, or a request is too long
            for the KV pool or for the model.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("the reference engine needs torch: pip install 'simctl[torch]'") from error
    from calibrate.decoder import Decoder
    from validate.engine.engine import Engine

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; expected one, or --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    _check_context(trace, config, model)
    decoder = Decoder(
        model,
        device=device,
        dtype=torch.float32 if model.dtype_bytes == 4 else torch.bfloat16,
        kv_blocks=config.kv_blocks,
        block_size=config.block_size,
        seed=seed,
        weights=weights,
    )
    recording = Engine(config, decoder, vocabulary=model.vocab).replay(trace, seed=seed, on_finish=on_finish)
    recording.engine = {
        "engine": "reference",
        "model": model.name,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        **recording.engine,
    }
    return recording


def write_measured(
    folder: Path,
    recording: Recording,
    *,
    scenario: dict[str, Any],
    slo: Slo,
    gpus: int | None,
    gpu_hour_price: float | None,
    kv_blocks: int | None,
    force: bool = False,
) -> Run:
    """Write a recording as a run folder with metrics and report, and return it as read back.

    Raises:
        UserError: the folder exists (without `force`) or cannot be written.
    """
    metrics = compute(
        recording.requests,
        recording.steps,
        slo=slo,
        gpus=gpus,
        gpu_hour_price=gpu_hour_price,
        kv_blocks_total=kv_blocks if len(recording.steps) else None,
    )
    recording.engine = {**recording.engine, "python": platform.python_version(), "simctl": version("simctl")}
    write_run(
        folder,
        requests=recording.requests,
        steps=recording.steps,
        metrics=metrics,
        scenario=scenario,
        assumptions=_facts(recording),
        force=force,
    )
    measurement = {
        "engine": recording.engine,
        "lateness": asdict(recording.lateness),
        "failures": dict(recording.failures),
    }
    (folder / _MEASUREMENT).write_text(json.dumps(measurement, indent=2) + "\n", encoding="utf-8")
    return read_run(folder)


def is_measured(folder: Path) -> bool:
    """Whether `folder` holds a finished measured run."""
    return (folder / _MEASUREMENT).is_file()


def read_measurement(folder: Path) -> tuple[dict[str, Any], Lateness, Counter[str]]:
    """(engine, lateness, failures by reason) of a measured run.

    Raises:
        UserError: the folder is not a finished measured run.
    """
    path = folder / _MEASUREMENT
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return value["engine"], Lateness(**value["lateness"]), Counter(value["failures"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; expected the folder of a measured run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not what a measured run writes ({type(error).__name__})") from error


def _check_context(trace: Trace, config: EngineConfig, model: ModelShape) -> None:
    tokens = trace.requests["prompt_tokens"] + trace.requests["output_tokens"]
    accepted = trace.requests.filter(tokens <= (config.max_model_len or tokens.max()))
    too_long = accepted.filter(accepted["prompt_tokens"] + accepted["output_tokens"] > model.max_context)
    if len(too_long):
        row = too_long.row(0, named=True)
        raise UserError(
            f"{trace.source}: request {row['request_id']} has {row['prompt_tokens']} prompt + {row['output_tokens']} "
            f"output tokens; {model.name} takes {model.max_context} ({len(too_long)} such requests); "
            "engine.max_model_len rejects longer ones"
        )


def _facts(recording: Recording) -> list[Assumption]:
    """What a reader of the run must know about how it was measured."""
    lateness = recording.lateness
    return [
        *(
            Assumption(f"engine.{key}", value, "", "measured", "what answered")
            for key, value in recording.engine.items()
        ),
        Assumption("lateness.mean", lateness.mean, "s", "measured", "sent or handed over after it was due"),
        Assumption("lateness.p99", lateness.p99, "s", "measured", "sent or handed over after it was due"),
        Assumption("lateness.max", lateness.max, "s", "measured", "sent or handed over after it was due"),
        *(
            Assumption("failures", count, "requests", "measured", why)
            for why, count in recording.failures.most_common()
        ),
    ]
