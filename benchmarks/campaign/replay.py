"""One replay of the check: its trace, what the simulator predicts of it, and what the reference engine makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from calibrate.block_swap import BlockSwap
from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, dtype_of
from calibrate.model import load_model
from campaign.policies import ENGINE, EVERY_URGENT, FEWEST, LENGTHS, SECONDS
from campaign.work import BLOCK_SIZE, free_memory, write_json
from ground.folder import new_folder
from sim.engine.config import EngineConfig
from sim.results.folder import Run, read_table, write_table
from sim.results.metrics import compute
from sim.results.tables import REQUESTS, STEPS
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, make_scenario
from sim.study.simulate import load_trace
from traces.synth import SynthSpec, generate
from traces.writing import write
from validate.engine.engine import Engine
from validate.measure import Machine
from validate.recording import Lateness

SEED = 0


@dataclass(frozen=True)
class Measured:
    """A finished replay: its run, on what it ran, the engine's counters, and how late the arrivals were."""

    run: Run
    machine: dict[str, Any]
    engine: dict[str, Any]
    lateness: Lateness


def write_trace(path: Path, device: str, *, rate: float, capacity: float) -> int:
    """Poisson arrivals at `rate` requests a second, as many as a device of that capacity serves in its time.

    Some have a priority above the others'. The same arguments give the same trace. Returns the number of requests.
    """
    # What comes faster than it is served takes as long as it takes to serve it.
    count = max(FEWEST[device], round(min(rate, capacity) * SECONDS[device]))
    spec = {"requests": count, "arrivals": {"process": "poisson", "rate": rate}, "lengths": LENGTHS[device]}
    trace = generate(SynthSpec.model_validate(spec), SEED)
    urgent = (pl.col("request_id") % EVERY_URGENT == 0).cast(pl.Int64)
    trace.requests = trace.requests.with_columns(priority=urgent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(trace, path)
    return count


def scenario_of(
    model: str, profile: Path, trace: Path, device: str, kv_blocks: int | None, settings: Mapping[str, Any]
) -> Scenario:
    """The scenario of one policy; `kv_blocks` null: those of `ENGINE`."""
    engine = ENGINE[device] | {"block_size": BLOCK_SIZE} | ({} if kv_blocks is None else {"kv_blocks": kv_blocks})
    data = {"trace": {"file": str(trace)}, "model": model, "profile": str(profile), "engine": engine, "seed": SEED}
    return make_scenario(data, dict(settings), Path(), "the campaign's scenario")


class ReferenceEngine:
    """The reference engine of one model; the decoder is kept from one replay to the next.

    `longest` is the longest context of the calibration: attention over it is what the graphs are captured for.
    """

    def __init__(self, model: str, device: str, *, longest: int) -> None:
        self._model = load_model(model)
        self._device = device
        self._longest = longest
        self._decoder: Decoder | None = None
        self._of: tuple[int, tuple[int, ...]] = (0, ())  # KV blocks and graph sizes of the decoder

    def measure(self, scenario: Scenario) -> Measured:
        """Replay the scenario's trace in real time.

        Raises:
            UserError: a request can never run.
        """
        config, trace = deploy(scenario).config, load_trace(scenario)
        decoder = self._decoder_for(config, scenario.engine.graph_sizes)
        swap = BlockSwap(decoder, config.swap_blocks) if config.swap_blocks else None
        engine = Engine(config, decoder, vocabulary=self._model.vocab, swap=swap)
        recording = engine.replay(trace, seed=scenario.seed)
        metrics = compute(
            recording.requests,
            recording.steps,
            slo=scenario.slo,
            gpus=scenario.gpus,
            gpu_hour_price=None,
            kv_blocks_total=config.kv_blocks,
        )
        run = Run(recording.requests, recording.steps, metrics, scenario.resolved(), [])
        machine = Machine(self._device).facts() | {
            "model": self._model.name,
            "dtype": str(decoder.dtype).removeprefix("torch."),
        }
        return Measured(run, machine, dict(recording.engine), recording.lateness)

    def _decoder_for(self, config: EngineConfig, graph_sizes: Sequence[int]) -> Decoder:
        wanted = config.kv_blocks, tuple(graph_sizes)
        if self._decoder is None or self._of != wanted:
            self.close()
            self._decoder = Decoder(
                self._model,
                device=self._device,
                dtype=dtype_of(self._model),
                kv_blocks=config.kv_blocks,
                block_size=config.block_size,
                seed=SEED,
            )
            if graph_sizes:
                DecodeGraphs(self._decoder, graph_sizes, max_context=self._longest).capture()
            self._of = wanted
        return self._decoder

    def close(self) -> None:
        """Give the memory back."""
        self._decoder = None
        free_memory(self._device)


def _without_paths(scenario: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scenario.items() if key not in ("trace", "profile", "model")}


def save(measured: Measured, folder: Path) -> None:
    """Keep a finished replay, whole or not at all."""
    with new_folder(folder, force=True) as partial:
        write_table(measured.run.requests, REQUESTS, partial / "requests.parquet")
        write_table(measured.run.steps, STEPS, partial / "steps.parquet")
        about = {
            "machine": measured.machine,
            "engine": measured.engine,
            "lateness": asdict(measured.lateness),
            "metrics": measured.run.metrics,
            "scenario": measured.run.scenario,
        }
        write_json(partial / "run.json", about)


def load(folder: Path, scenario: Scenario) -> Measured | None:
    """A replay that was kept; None where there is none, or where it is of another scenario.

    The folder may have been moved since, to another machine for instance: where its files lay is not compared.
    """
    path = folder / "run.json"
    if not path.is_file():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    if _without_paths(about["scenario"]) != _without_paths(scenario.resolved()):
        return None
    run = Run(
        read_table(folder / "requests.parquet", REQUESTS),
        read_table(folder / "steps.parquet", STEPS),
        about["metrics"],
        about["scenario"],
        [],
    )
    return Measured(run, about["machine"], about["engine"], Lateness(**about["lateness"]))
