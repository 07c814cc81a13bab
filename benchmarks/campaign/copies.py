"""Part 6: what it costs to move bytes: between host and device, alone and beside decoding; KV blocks out and back,
against computing them again; and weights from disk to device, with the rest of an engine's start-up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import polars as pl
import torch

from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder, SequenceInput, dtype_of
from calibrate.microbench import copy
from calibrate.microbench.grid import StepShape
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench
from calibrate.model import ModelShape, load_model
from campaign.profile import grid_of
from campaign.work import BLOCK_SIZE, Work, free_memory

_SIZES = {"cpu": [1 << 16, 1 << 20], "cuda": [1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28]}
_DECODING = {"cpu": (2, 64), "cuda": (32, 1024)}  # sequences, context
_STEPS_BESIDE = {"cpu": 3, "cuda": 10}
_CONTEXTS = {"cpu": [16, 100], "cuda": [128, 512, 1024, 2048, 4096, 8192]}
_WEIGHT_FILE = {"cpu": 1 << 20, "cuda": 1 << 30}
# Beside decoding only copies that are long beside the Python that starts them: else that is what the step waits for.
_LEAST_BESIDE = {"cpu": 1 << 20, "cuda": 1 << 24}


def run(work: Work) -> None:
    if "start_up" not in work.found:
        work.found["start_up"] = start_up(work)
        free_memory(work.device)
    work.need(12, "the copies")
    grid = replace(grid_of(work), budget=0.05 if work.on_gpu else 0.005)
    bench = Workbench(load_model(work.model), grid, work.device, BLOCK_SIZE, 0)
    copies = pl.DataFrame(copy_rows(bench, _SIZES[work.device], _DECODING[work.device], _STEPS_BESIDE[work.device]))
    copies.write_parquet(work.out / "copies.parquet")
    work.found["copies"] = len(copies)
    work.need(5, "the block swaps")
    swaps = pl.DataFrame(swap_rows(bench, _CONTEXTS[work.device]))
    swaps.write_parquet(work.out / "swaps.parquet")
    work.found["swaps"] = len(swaps)


def copy_rows(bench: Workbench, sizes: list[int], decoding: tuple[int, int], steps: int) -> list[dict[str, Any]]:
    """Seconds of one copy by direction, kind of host memory and size.

    `beside` says whether the device decodes meanwhile; then `step_seconds` is what a step took beside the copies, and
    `step_seconds_alone` what it takes without.
    """
    rows: list[dict[str, Any]] = []
    sequences, context = decoding
    batch = bench.batch(StepShape([], [context] * sequences))

    def step() -> float:
        """By the clock alone: whoever waits for the device to be idle waits for the copies too."""
        fresh = bench.fresh_tokens(batch)
        begin = perf_counter()
        bench.decoder.step(fresh)
        return perf_counter() - begin

    alone = median(repeat(lambda: {"step": step()}, bench.grid.budget)["step"])
    for size in sizes:
        for way, samples in copy.measure(bench, {"bytes": size}):
            about = way | {"bytes": size}
            none = {"step_seconds": None, "step_seconds_alone": None}
            rows.append(about | {"beside": "nothing", "seconds": median(samples)} | none)
            if size < _LEAST_BESIDE[bench.device.type]:
                continue
            copying = _Copying(bench.device, size, **way)
            with copying:
                times = [step() for _ in range(steps)]
            with_steps = {"step_seconds": median(times), "step_seconds_alone": alone}
            rows.append(about | {"beside": "decoding", "seconds": copying.seconds} | with_steps)
    return rows


class _Copying:
    """Copies over and over in a thread and on a stream of its own, while the `with` block runs.

    A thread, since a copy from or to pageable memory holds up the one that asked for it.
    """

    def __init__(self, device: torch.device, size: int, *, direction: str, memory: str) -> None:
        host = torch.empty(size, dtype=torch.uint8, pin_memory=memory == "pinned")
        other = torch.empty(size, dtype=torch.uint8, device=device)
        for buffer in (host, other):
            buffer.view(torch.int64).random_()
        self._source, self._target = (other, host) if direction == "device_to_host" else (host, other)
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._copy)
        self.seconds = 0.0  # of one copy, once it has stopped

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _copy(self) -> None:
        try:
            self._copy_once()  # the first one touches the pages, and is not counted
        finally:
            self._begun.set()
        done, begin = 0, perf_counter()
        while not done or not self._stop.is_set():
            self._copy_once()
            done += 1
        self.seconds = (perf_counter() - begin) / done

    def _copy_once(self) -> None:
        if self._stream is None:
            self._target.copy_(self._source)
            return
        with torch.cuda.stream(self._stream):
            self._target.copy_(self._source, non_blocking=True)
        self._stream.synchronize()


def swap_rows(bench: Workbench, contexts: list[int]) -> list[dict[str, Any]]:
    """What it costs a sequence of some context to be sent to host memory and fetched, and to be computed again."""
    most = -(-max(contexts) // BLOCK_SIZE)
    swap = BlockSwap(bench.decoder, host_blocks=most)
    rows = []
    for context in contexts:
        sequence = bench.sequence(context, 0)
        device_blocks, host_blocks = list(sequence.blocks), list(range(len(sequence.blocks)))
        moved = len(device_blocks)
        ways: dict[str, Callable[[], object]] = {
            "out_seconds": partial(swap.swap_out, device_blocks, host_blocks),
            "in_seconds": partial(swap.swap_in, host_blocks, device_blocks),
            "recompute_seconds": partial(bench.decoder.step, [sequence]),
        }
        times = {name: _median_seconds(bench, way) for name, way in ways.items()}
        rows.append({"context": context, "blocks": moved, "bytes": moved * swap.block_bytes} | times)
    return rows


def _median_seconds(bench: Workbench, run: Callable[[], object]) -> float:
    """From an idle device to an idle device; in the median over the bench's budget."""
    return median(repeat(lambda: {"seconds": whole(run, bench.device)}, bench.grid.budget)["seconds"])


def start_up(work: Work) -> dict[str, Any]:
    """Seconds of an engine's start: weights from a file to the device, a decoder with random ones, its first steps."""
    model, device = load_model(work.model), torch.device(work.device)
    found: dict[str, Any] = weight_load(work.out / ".weights.bin", _WEIGHT_FILE[work.device], device)
    begin = perf_counter()
    decoder = Decoder(model, device=work.device, dtype=dtype_of(model), kv_blocks=256, block_size=BLOCK_SIZE)
    if work.on_gpu:
        torch.cuda.synchronize()
    found["decoder_seconds"] = perf_counter() - begin
    found["first_step_seconds"] = [_first_step(decoder, model, device) for _ in range(3)]
    return found


def weight_load(path: Path, size: int, device: torch.device) -> dict[str, float]:
    """Seconds to read a file of random bytes into (on a GPU pinned) host memory, and from there to the device.

    The system is asked to forget the file first; whether it did shows in `disk_to_host`.
    """
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host.view(torch.int64).random_()
    try:
        with path.open("wb") as file:
            file.write(memoryview(host.numpy()))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = perf_counter()
        with path.open("rb", buffering=0) as file:
            read, view = 0, memoryview(host.numpy())
            while read < size:
                read += file.readinto(view[read : read + (1 << 26)])
        disk = perf_counter() - begin
    finally:
        path.unlink(missing_ok=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    copied = min(whole(lambda: target.copy_(host, non_blocking=True), device) for _ in range(3))
    return {"weight_bytes": float(size), "disk_to_host_seconds": disk, "host_to_device_seconds": copied}


def _first_step(decoder: Decoder, model: ModelShape, device: torch.device) -> float:
    tokens = [index % model.vocab for index in range(64)]
    return whole(lambda: decoder.step([SequenceInput(tokens, 0, range(4))]), device)
