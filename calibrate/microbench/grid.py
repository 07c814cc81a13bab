"""Where the tables are measured, and where the held-out points lie: never on the grid, and never beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class StepShape:
    """A batch of one step: prefills of (new tokens, tokens already cached), and the contexts that decode."""

    prefills: Sequence[Sequence[int]]
    contexts: Sequence[int]

    @property
    def tokens(self) -> int:
        return sum(new for new, _ in self.prefills) + len(self.contexts)

    @property
    def sequences(self) -> int:
        return len(self.prefills) + len(self.contexts)


@dataclass(frozen=True)
class Grid:
    """The points of one calibration.

    `contexts` are tokens already cached. The host's overhead is measured at `step_sequences` × `step_extra`, the
    latter being tokens beyond one a sequence, and of steps that only decode also at `step_decodes`. `budget` is the
    seconds spent on one point in one of `rounds`. Whole steps that only decode are padded to the next of `graph_sizes`,
    and on a GPU replayed from a graph of that size. `pruning`: what only a pruned model runs is measured too.
    """

    tokens: Sequence[int]
    sequences: Sequence[int]
    chunks: Sequence[int]
    prefill_contexts: Sequence[int]
    decodes: Sequence[int]
    decode_contexts: Sequence[int]
    copy_bytes: Sequence[int]
    step_sequences: Sequence[int]
    step_extra: Sequence[int]
    held_out_tokens: Sequence[int]
    held_out_sequences: Sequence[int]
    held_out_prefills: Sequence[Sequence[int]]
    held_out_decodes: Sequence[Sequence[int]]
    held_out_copies: Sequence[int]
    held_out_steps: Sequence[StepShape]
    step_context: int
    rounds: int
    budget: float
    graph_sizes: Sequence[int] = ()
    step_decodes: Sequence[int] = ()
    pruning: bool = False

    @property
    def longest_context(self) -> int:
        """No sequence of a batch is longer: the longest of a spread batch, behind the longest chunk."""
        return max(*self.prefill_contexts, *self.decode_contexts) * 5 // 4 + max(self.chunks)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


# A graph takes time and memory to capture; between these sizes a step computes at most half as many rows again.
CUDA_GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def doubling(first: int, last: int) -> list[int]:
    """first, 2·first, 4·first … up to `last`."""
    return [first * 2**k for k in range(64) if first * 2**k <= last]


def cpu_grid() -> Grid:
    """Up to 1024 tokens a step, 64 sequences, contexts of 2048."""
    return Grid(
        tokens=[*range(1, 9), 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024],
        sequences=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64],
        chunks=[1, 4, *doubling(16, 1024)],
        prefill_contexts=[0, 16, 128, 512, 2048],
        decodes=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64],
        decode_contexts=[0, 32, 128, 256, 512, 1024, 2048],
        copy_bytes=[4**k for k in range(6, 14)],
        step_sequences=[1, 4, 16, 64],
        step_extra=[0, 31, 255, 960],
        held_out_tokens=[9, 28, 80, 160, 320, 640, 900],
        held_out_sequences=[5, 10, 20, 40, 56],
        held_out_prefills=[(24, 40), (48, 0), (90, 300), (200, 0), (300, 700), (700, 100), (800, 0)],
        held_out_decodes=[(1, 700), (5, 80), (5, 400), (10, 1500), (20, 180), (40, 90), (40, 600)],
        held_out_copies=[10_000, 300_000, 10_000_000],
        held_out_steps=[
            *_decode_steps([(1, 90), (1, 900), (3, 300), (5, 150), (10, 100), (10, 700), (20, 300), (28, 200)]),
            *_decode_steps([(40, 100), (56, 250)]),
            StepShape([(100, 0)], []),
            StepShape([(400, 0)], []),
            StepShape([(180, 320)], []),
            StepShape([(900, 0)], []),
            StepShape([(40, 0), (70, 16), (33, 0)], []),
            StepShape([(200, 0), (300, 0)], spread(4, 120)),
            StepShape([(50, 0)], spread(3, 200)),
            StepShape([(120, 64)], spread(10, 250)),
            StepShape([(240, 0)], spread(20, 150)),
            StepShape([(90, 0), (140, 0)], spread(12, 400)),
            StepShape([(500, 256)], spread(6, 300)),
            StepShape([(30, 0)], spread(36, 180)),
        ],
        step_context=192,
        rounds=3,
        budget=0.02,
    )


def quick_grid() -> Grid:
    """A coarse grid of seconds, to try the command or to test it; not for predictions."""
    return Grid(
        tokens=[1, 4, 16, 64, 128],
        sequences=[1, 4, 8],
        chunks=[1, 16, 128],
        prefill_contexts=[0, 128],
        decodes=[1, 4, 8],
        decode_contexts=[0, 128, 256],
        copy_bytes=[4096, 1 << 20],
        step_sequences=[1, 8],
        step_extra=[0, 127],
        held_out_tokens=[32],
        held_out_sequences=[6],
        held_out_prefills=[(64, 64)],
        held_out_decodes=[(6, 200)],
        held_out_copies=[100_000],
        held_out_steps=[StepShape([], spread(6, 100)), StepShape([(60, 0)], spread(3, 100))],
        step_context=96,
        rounds=1,
        budget=0.005,
    )


def cuda_grid() -> Grid:
    """Up to 8192 tokens a step, 256 sequences, contexts of 16384."""
    powers = doubling(1, 8192)
    return Grid(
        tokens=sorted({*powers, *(3 * p for p in powers if 2 <= p <= 2048)}),
        sequences=sorted({*doubling(1, 256), 3, 6, 12, 24, 48, 96, 192}),
        chunks=[1, 4, *doubling(16, 8192)],
        prefill_contexts=[0, 16, 64, *doubling(256, 16384)],
        decodes=sorted({*doubling(1, 256), 3, 6, 12, 24, 48, 96, 192}),
        decode_contexts=[0, 32, 128, *doubling(256, 16384)],
        copy_bytes=[4**k for k in range(6, 15)],
        step_sequences=doubling(1, 256),
        step_extra=[0, 1, 15, 63, 255, 1023, 7936],
        held_out_tokens=[9, 80, 320, 900, 2500, 5000],
        held_out_sequences=[5, 20, 40, 150],
        held_out_prefills=[(48, 0), (200, 0), (300, 700), (1500, 3000), (3000, 0)],
        held_out_decodes=[(1, 700), (5, 400), (20, 3000), (40, 600), (150, 1500)],
        held_out_copies=[10_000, 300_000, 10_000_000],
        held_out_steps=[
            *_decode_steps([(1, 900), (5, 300), (20, 700), (40, 1500), (150, 600)]),
            StepShape([(400, 0)], []),
            StepShape([(3000, 0)], []),
            StepShape([(1500, 2000)], []),
            StepShape([(700, 0)], spread(20, 800)),
            StepShape([(300, 0), (900, 64)], spread(100, 500)),
        ],
        step_context=1024,
        rounds=3,
        budget=0.05,
        graph_sizes=CUDA_GRAPH_SIZES,
    )


def short_cuda_grid() -> Grid:
    """The same ranges in a fifth of the points: one minute for a model of 8 billion parameters."""
    return Grid(
        tokens=[
            1,
            2,
            4,
            8,
            16,
            24,
            32,
            48,
            64,
            96,
            128,
            192,
            256,
            384,
            512,
            640,
            768,
            896,
            1024,
            1280,
            1536,
            1792,
            2048,
            3072,
            4096,
            6144,
            8192,
        ],
        sequences=[1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256],
        chunks=[1, 16, 64, 128, 256, 512, 768, 1024, 1536, 2048, 4096, 8192],
        prefill_contexts=[0, 64, 512, 2048, 8192],
        decodes=[1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256],
        decode_contexts=[0, 128, 512, 1024, 2048, 4096, 8192],
        copy_bytes=[4**k for k in range(6, 15)],
        step_sequences=[1, 8, 32, 64, 128],
        # Dense where a step that is launched kernel by kernel turns from waiting for the host to waiting for the GPU.
        step_extra=[0, 1, 63, 191, 255, 319, 383, 511, 1023, 2047, 7936],
        held_out_tokens=[9, 80, 320, 900, 2500, 5000],
        held_out_sequences=[5, 20, 40, 150],
        held_out_prefills=[(48, 0), (200, 0), (300, 700), (1500, 3000), (3000, 0)],
        held_out_decodes=[(1, 700), (5, 400), (20, 3000), (40, 600), (150, 1500)],
        held_out_copies=[10_000, 300_000, 10_000_000],
        held_out_steps=cuda_grid().held_out_steps,
        step_context=512,
        rounds=1,
        budget=0.03,
        graph_sizes=CUDA_GRAPH_SIZES,
        step_decodes=[n for n in CUDA_GRAPH_SIZES if n not in (1, 8, 32, 64, 128)],
    )


def kernels_only(grid: Grid) -> Grid:
    """A grid without whole steps: what is measured for a model whose overheads another one's profile gives."""
    steps: dict[str, Any] = {
        "step_sequences": [],
        "step_extra": [],
        "step_decodes": [],
        "held_out_steps": [],
        "graph_sizes": [],
    }
    return replace(grid, copy_bytes=[], held_out_copies=[], **steps)


def spread(sequences: int, mean: int) -> list[int]:
    """Contexts evenly spread by a quarter of their mean to either side, as a serving batch's are; the mean is exact."""
    half = mean / 4
    steps = [(2 * i + 1) / sequences - 1 for i in range(sequences)]
    contexts = [round(mean + half * step) for step in steps]
    contexts[-1] += mean * sequences - sum(contexts)
    return contexts


def _decode_steps(batches: Sequence[tuple[int, int]]) -> list[StepShape]:
    return [StepShape([], spread(n, mean)) for n, mean in batches]
