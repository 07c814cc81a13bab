"""Part 1: what the device can do at best, and how near the decoder comes to it.

Copies and products run over buffers that are rotated and together far larger than the L2 cache, on random data: zeros
make a GPU draw less power and clock higher.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from calibrate.microbench.grid import StepShape
from calibrate.microbench.timing import LapTimer, repeat, whole
from calibrate.microbench.workbench import Workbench
from calibrate.model import load_model
from campaign.profile import grid_of
from campaign.work import BLOCK_SIZE, Work, free_memory

_COPY_BYTES = {"cpu": 1 << 22, "cuda": 1 << 31}
_MATRIX = {"cpu": 128, "cuda": 8192}
_BUFFERS, _PASSES = 3, 8
_BUDGET = {"cpu": 0.02, "cuda": 0.8}
# (sequences, context) of decode steps and tokens of prefills whose distance from the ceilings is told.
_DECODES = {
    "cpu": [(1, 64), (4, 64)],
    "cuda": [*((n, 1024) for n in (1, 2, 4, 8, 16, 32, 64)), (128, 4096)],
}
_PREFILLS = {"cpu": [64], "cuda": [2048, 4096, 8192]}


def run(work: Work) -> None:
    device = torch.device(work.device)
    copy = copy_bandwidth(device, _COPY_BYTES[work.device], _BUDGET[work.device])
    rate = matrix_rate(device, _MATRIX[work.device], _BUDGET[work.device])
    work.found.update(copy_bytes_per_second=copy, matrix_flops_per_second=rate)
    free_memory(work.device)
    work.need(20, "the decoder was held against the ceilings")
    work.found.update(near_ceilings(work, copy, rate))


def copy_bandwidth(device: torch.device, size: int, budget: float) -> float:
    """Bytes read and written per second by a device-to-device copy."""
    buffers = [torch.randint(0, 256, (size,), device=device, dtype=torch.uint8) for _ in range(_BUFFERS)]

    def run(turn: int) -> None:
        buffers[turn % _BUFFERS].copy_(buffers[(turn + 1) % _BUFFERS])

    return 2 * size / _seconds(run, device, budget)


def matrix_rate(device: torch.device, size: int, budget: float) -> float:
    """Floating-point operations per second of a square product, in bfloat16 on a GPU and in float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = ([torch.randn(size, size, device=device, dtype=dtype) for _ in range(_BUFFERS)] for _ in range(2))
    product = torch.empty(size, size, device=device, dtype=dtype)

    def run(turn: int) -> None:
        torch.mm(left[turn % _BUFFERS], right[turn % _BUFFERS], out=product)

    return 2 * size**3 / _seconds(run, device, budget)


def near_ceilings(work: Work, copy: float, rate: float) -> dict[str, Any]:
    """Whole steps beside the least that they could take.

    A decode step must read all weights but the embedding table, and the cached keys and values; a prefill must do two
    operations for each weight and token, and four for each query–key pair and feature.
    """
    model = load_model(work.model)
    bench = Workbench(model, grid_of(work), work.device, BLOCK_SIZE, seed=0)
    table = model.vocab * model.hidden * model.dtype_bytes
    weights = model.weight_bytes() - (0 if model.tied_embeddings else table)
    parameters = sum(line.inputs * line.outputs for line in model.linears() if line.name != "lm_head") * model.layers
    decodes, prefills = [], []
    for sequences, context in _DECODES[work.device]:
        seconds = _step(bench, StepShape([], [context] * sequences), _BUDGET[work.device] / 4)
        floor = (weights + sequences * context * model.kv_bytes_per_token()) / copy
        decodes.append(
            {"sequences": sequences, "context": context, "seconds": seconds, "least": floor, "ratio": seconds / floor}
        )
    for tokens in _PREFILLS[work.device]:
        seconds = _step(bench, StepShape([(tokens, 0)], []), _BUDGET[work.device] / 4)
        pairs = tokens * (tokens + 1) // 2
        flops = 2 * parameters * tokens + 2 * model.vocab * model.hidden
        flops += 4 * model.layers * model.heads * model.head_dim * pairs
        prefills.append({"tokens": tokens, "seconds": seconds, "share_of_matrix_rate": flops / seconds / rate})
    return {"decode_steps": decodes, "prefill_steps": prefills}


def _seconds(run: Any, device: torch.device, budget: float) -> float:
    """Median seconds of one call; `_PASSES` calls are queued at once, so that no gap between two of them is counted."""
    timer = LapTimer(device)
    turn = 0

    def one_pass() -> dict[str, float]:
        nonlocal turn
        timer.start()
        for _ in range(_PASSES):
            run(turn)
            turn += 1
        timer.lap("run")
        return timer.seconds()

    return median(repeat(one_pass, budget)["run"]) / _PASSES


def _step(bench: Workbench, shape: StepShape, budget: float) -> float:
    batch = bench.batch(shape)

    def one_pass() -> dict[str, float]:
        fresh = bench.fresh_tokens(batch)
        return {"step": whole(lambda: bench.decoder.step(fresh), bench.device)}

    return median(repeat(one_pass, budget)["step"])
