"""A measured run: replay a trace on the real engine, and write it as the simulator writes its own."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from calibrate.model import ModelShape, load_model
from ground.assumption import Assumption
from ground.errors import UserError
from ground.whole_file import whole_file
from sim.engine.config import EngineConfig
from sim.fleet.order_columns import with_order_columns
from sim.results import offload_metrics, speculation_metrics
from sim.results.folder import Run, write_run
from sim.results.metrics import compute
from sim.study.deployment import deploy
from sim.study.host_tiers import host_link_of
from sim.study.scenario import Scenario
from sim.study.simulate import load_trace
from traces.table import Trace
from validate.prompts import prompt_of
from validate.recording import Lateness, Recording
from validate.replay.openai import Server, replay

# Beside the run's own files: what only a measured run has. It is written last, so it marks a finished one.
_MEASUREMENT = "measurement.json"


@dataclass(frozen=True)
class Machine:
    """On what the reference engine runs. `threads` null: torch's own number; `weights` null: random ones.

    With `text` prompts are held-out text that comes with Python, for a model whose tokens are bytes, and not random.
    """

    device: str = "cpu"
    threads: int | None = None
    weights: Path | None = None
    text: bool = False

    def facts(self) -> dict[str, Any]:
        """What is known of a run on it before it is run; equal facts make runs comparable.

        Raises:
            UserError: torch is not installed, or there is no such device.
        """
        try:
            import torch
        except ImportError as error:
            raise UserError("the reference engine needs torch: pip install 'simctl[torch]'") from error
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no CUDA device; expected one, or --device cpu")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return {
            "engine": "reference",
            "device": torch.cuda.get_device_name() if self.device == "cuda" else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "weights": "random" if self.weights is None else str(self.weights),
            **({"prompts": "text"} if self.text else {}),
        }

    def with_weights_of(self, model: str) -> Machine:
        """The same, with the weights beside the model's own config.json where none are given and some lie there."""
        folder = Path(model) if Path(model).is_dir() else Path(model).parent
        beside = self.weights is None and Path(model).exists() and any(folder.glob("*.safetensors"))
        return replace(self, weights=folder) if beside else self


def measure_reference(
    scenario: Scenario,
    machine: Machine,
    folder: Path,
    *,
    force: bool = False,
    on_finish: Callable[[], None] = lambda: None,
) -> None:
    """Replay a scenario's trace in real time on our own engine and write the measured run to `folder`.

    Blocks, budgets and policies are those with which the scenario is simulated.

    Raises:
        UserError: torch is not installed or finds no such device, the scenario has more than one engine or GPU, the
            model cannot be run, a request is too long for it or for the KV pool, or `folder` cannot be written.
    """
    facts = machine.facts()
    from calibrate.block_file import BlockFile
    from calibrate.block_swap import BlockSwap
    from calibrate.decode_graphs import DecodeGraphs
    from calibrate.decoder import dtype_of
    from calibrate.pruned_decoder import PrunedDecoder, make_decoder
    from validate.engine.block_moves import BlockMoves
    from validate.engine.clock import WallClock
    from validate.engine.engine import Engine

    if scenario.gpus > 1:
        replicas, tensor_parallel = scenario.fleet.replicas, scenario.engine.tensor_parallel
        raise UserError(
            f"fleet.replicas is {replicas} and engine.tensor_parallel {tensor_parallel}; "
            "the reference engine is one engine on one device, expected 1 and 1"
        )
    if scenario.engine.weight_offload is not None:
        raise UserError(
            "engine.weight_offload is given; expected none: the reference engine keeps all weights on its device"
        )
    model, deployed, trace = load_model(scenario.model), deploy(scenario), load_trace(scenario)
    config, step_times = deployed.config, deployed.step_times
    policy, ttft = config.scheduling_policy, scenario.slo.ttft
    trace = replace(trace, requests=with_order_columns(trace.requests, {policy}, ttft))
    _check_context(trace, config, model)
    longest = config.max_model_len or int((trace.requests["prompt_tokens"] + trace.requests["output_tokens"]).max())  # type: ignore[arg-type]
    pruning = None if config.pruning is None else config.pruning.of(model)
    decoder = make_decoder(
        model,
        pruning=pruning,
        device=machine.device,
        dtype=dtype_of(model),
        kv_blocks=config.kv_blocks,
        block_size=config.block_size,
        seed=scenario.seed,
        weights=machine.weights,
    )
    captured = 0.0
    if scenario.engine.graph_sizes:
        if isinstance(decoder, PrunedDecoder) and not decoder.takes_graphs:
            raise UserError(
                "engine.pruning changes what a step attends to, and captured graphs do not know it; expected "
                "engine.cudagraph_capture_sizes []"
            )
        graphs = DecodeGraphs(decoder, scenario.engine.graph_sizes, max_context=longest)
        captured = sum(graph.seconds for graph in graphs.capture())
    tiers = config.kv_offload
    host_blocks = config.swap_blocks + (tiers.host_blocks if tiers is not None else 0)
    swap = BlockSwap(decoder, host_blocks) if host_blocks else None
    clock = WallClock()
    moves = None
    if swap is not None and tiers is not None:
        file = BlockFile(tiers.disk.blocks, swap.block_bytes) if tiers.disk is not None else None
        moves = BlockMoves(swap, file, clock)
    try:
        engine = Engine(
            config,
            decoder,
            vocabulary=model.vocab,
            swap=swap,
            moves=moves,
            predicted=step_times if host_blocks else None,
            host_link=host_link_of(scenario.engine, step_times),
            clock=clock,
        )
        prompts = _text_prompts(trace, model, scenario.seed) if machine.text else None
        recording = engine.replay(trace, seed=scenario.seed, prompts=prompts, on_finish=on_finish)
    finally:
        if moves is not None:
            moves.close()
    recording.engine = {
        **facts,
        "model": model.name,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "capture_seconds": captured,
        **recording.engine,
    }
    _write(folder, recording, scenario, gpus=scenario.gpus, kv_blocks=config.kv_blocks, force=force)


def measure_transformers(
    scenario: Scenario,
    machine: Machine,
    folder: Path,
    *,
    force: bool = False,
    on_finish: Callable[[], None] = lambda: None,
) -> None:
    """Replay a scenario's trace in real time on Hugging Face transformers and write the measured run to `folder`.

    Its scheduler gets the limits with which the scenario is simulated, and its model our own engine's weights.

    Raises:
        UserError: transformers or torch is not installed or too old, there is no such device, the scenario has more
            than one engine or GPU or a setting that transformers does not have, the model cannot be run, a request is
            too long for it or for the KV cache, or `folder` cannot be written.
    """
    try:
        installed = version("transformers")
    except PackageNotFoundError as error:
        raise UserError("--engine transformers needs the package: pip install 'simctl[transformers]'") from error
    if tuple(map(int, installed.split(".")[:2])) < (5, 24):
        raise UserError(f"transformers {installed} is installed; expected 5.24 or newer")
    facts = machine.facts() | {"engine": "transformers", "transformers": installed}
    from calibrate.decoder import dtype_of
    from validate.replay.transformers import replay as replay_on_transformers
    from validate.replay.transformers_manager import build, check_limits

    if scenario.gpus > 1:
        raise UserError(f"the scenario has {scenario.gpus} GPUs; transformers runs as one engine on one, expected 1")
    if scenario.engine.weight_offload is not None:
        raise UserError("engine.weight_offload is given; expected none: transformers keeps all weights on its device")
    model, config, trace = load_model(scenario.model), deploy(scenario).config, load_trace(scenario)
    check_limits(config, machine.device)
    _check_context(trace, config, model)
    _check_fits(trace, config)
    dtype = dtype_of(model)
    built = build(model, config, device=machine.device, dtype=dtype, seed=scenario.seed, weights=machine.weights)
    recording = replay_on_transformers(
        trace,
        built.manager,
        vocabulary=model.vocab,
        seed=scenario.seed,
        max_model_len=config.max_model_len,
        on_finish=on_finish,
    )
    names = {"model": model.name, "dtype": str(dtype).removeprefix("torch.")}
    recording.engine = {**facts, **names, **built.facts, **recording.engine}
    _write(folder, recording, scenario, gpus=scenario.gpus, kv_blocks=config.kv_blocks, force=force)


def measure_server(
    scenario: Scenario,
    server: Server,
    folder: Path,
    *,
    force: bool = False,
    on_finish: Callable[[], None] = lambda: None,
) -> None:
    """Replay a scenario's trace in real time against a server and write the measured run to `folder`.

    Raises:
        UserError: see `validate.replay.openai.replay`; or `folder` cannot be written.
    """
    recording = replay(load_trace(scenario), server, seed=scenario.seed, on_finish=on_finish)
    _write(folder, recording, scenario, gpus=None, kv_blocks=None, force=force)


def _write(
    folder: Path, recording: Recording, scenario: Scenario, *, gpus: int | None, kv_blocks: int | None, force: bool
) -> None:
    """Write a recording as a run folder with metrics and report; `gpus` and `kv_blocks` are null where not known."""
    metrics = compute(
        recording.requests,
        recording.steps,
        slo=scenario.slo,
        gpus=gpus,
        gpu_hour_price=scenario.gpu_hour_price,
        kv_blocks_total=kv_blocks,
    )
    if scenario.engine.speculative is not None and len(recording.steps):
        metrics["speculation"] = speculation_metrics.compute(recording.steps, recording.events)
    if scenario.engine.kv_offload is not None:
        size = scenario.engine.block_size
        metrics["kv_offload"] = offload_metrics.compute(recording.requests, recording.events, block_size=size)
    recording.engine = {**recording.engine, "python": platform.python_version(), "simctl": version("simctl")}
    run = Run(
        recording.requests,
        recording.steps,
        metrics,
        scenario.resolved(),
        _facts(recording),
        events=recording.events,
        sessions=recording.sessions,
    )
    write_run(folder, run, force=force)
    measurement = {
        "engine": recording.engine,
        "lateness": asdict(recording.lateness),
        "failures": dict(recording.failures),
    }
    with whole_file(folder / _MEASUREMENT) as partial:
        partial.write_text(json.dumps(measurement, indent=2) + "\n", encoding="utf-8")


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


def _text_prompts(trace: Trace, model: ModelShape, seed: int) -> dict[int, list[int]]:
    """Prompts cut from held-out text, by request id."""
    from validate.quality.text import python_text

    if model.vocab != 256:
        raise UserError(f"--prompts text: {model.name} has {model.vocab} tokens; expected 256, of which each is a byte")
    text = b"".join(document.text for document in python_text(only_held_out=True).documents)
    rows = trace.requests.to_dicts()
    return {row["request_id"]: prompt_of(row, vocabulary=model.vocab, seed=seed, text=text) for row in rows}


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


def _check_fits(trace: Trace, config: EngineConfig) -> None:
    """A request larger than the whole cache would end transformers' engine."""
    tokens = trace.requests["prompt_tokens"] + trace.requests["output_tokens"]
    capacity = config.kv_blocks * config.block_size
    too_large = trace.requests.filter((tokens > capacity) & (tokens <= (config.max_model_len or tokens.max())))
    if len(too_large):
        row = too_large.row(0, named=True)
        raise UserError(
            f"{trace.source}: request {row['request_id']} has {row['prompt_tokens']} prompt + {row['output_tokens']} "
            f"output tokens; expected no more than fit {config.kv_blocks} blocks of {config.block_size}"
        )


def _facts(recording: Recording) -> list[Assumption]:
    """What a reader of the run must know about how it was measured."""
    late, why_late = recording.lateness, "handed over after it was due"
    return [
        *(Assumption(f"engine.{key}", fact, "", "measured", "what answered") for key, fact in recording.engine.items()),
        *(
            Assumption(f"lateness.{key}", getattr(late, key), "s", "measured", why_late)
            for key in ("mean", "p99", "max")
        ),
        *(Assumption("failures", count, "requests", "measured", why) for why, count in recording.failures.items()),
    ]
