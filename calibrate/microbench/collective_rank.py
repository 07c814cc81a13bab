"""One of the processes that time collective operations between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# A sample is the mean of calls back to back that take about this long together: single calls of some microseconds would
# be lost between the clocks of the ranks (NVIDIA/nccl-tests counts so too).
_SAMPLE_SECONDS = 5e-4
_MOST_CALLS = 200
_FEWEST_SAMPLES, _MOST_SAMPLES = 3, 100


class Point(NamedTuple):
    """`size`: bytes of one rank's input."""

    operation: str
    ranks: int
    size: int


def run_rank(
    rank: int, ranks: int, device: str, meeting: str, points: Sequence[Point], budget: float, results: SimpleQueue[Any]
) -> None:
    """Join the others at the file `meeting` and time all points with them, each for about `budget` seconds.

    Rank 0 puts (point, seconds of one call, one a sample) for each; of all ranks the slowest counts.
    """
    torch.set_num_threads(1)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    where = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    for point in points:
        samples = _time(_operation(point, rank, where), budget, where)
        if rank == 0:
            results.put((point, samples))
    dist.barrier()
    dist.destroy_process_group()


def _time(call: Callable[[], object], budget: float, where: torch.device) -> list[float]:
    """Seconds of one call; every rank does the same number of calls, which the slowest decides."""
    call()
    single = _slowest(_calls(call, 1, where), where)
    calls = max(1, min(_MOST_CALLS, int(_SAMPLE_SECONDS / single)))
    first = _slowest(_calls(call, calls, where), where)
    count = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, int(budget / max(first, 1e-9))))
    return [_slowest(_calls(call, calls, where), where) / calls for _ in range(count)]


def _calls(call: Callable[[], object], count: int, where: torch.device) -> float:
    dist.barrier()
    if where.type == "cuda":
        torch.cuda.synchronize()
    begin = perf_counter()
    for _ in range(count):
        call()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begin


def _slowest(seconds: float, where: torch.device) -> float:
    together = torch.tensor([seconds], dtype=torch.float64, device=where)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return float(together)


def _operation(point: Point, rank: int, where: torch.device) -> Callable[[], object]:
    """A call of it, on float32 buffers; of send and receive the first two ranks take part."""
    name, ranks, size = point
    count = size // 4
    given = torch.ones(count, device=where)
    if name == "all_reduce":
        return lambda: dist.all_reduce(given, dist.ReduceOp.MAX)  # of ones, which therefore stay
    if name == "all_gather":
        gathered = torch.empty(count * ranks, device=where)
        gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return lambda: gather(gathered, given)
    if name == "reduce_scatter":
        part = torch.empty(count // ranks, device=where)
        scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return lambda: scatter(part, given)
    if name == "all_to_all":
        received = torch.empty(count, device=where)
        return lambda: dist.all_to_all_single(received, given)
    if name == "send_recv":
        if rank > 1:
            return lambda: None
        return (lambda: dist.send(given, 1)) if rank == 0 else (lambda: dist.recv(given, 0))
    raise ValueError(f"no operation {name}")
