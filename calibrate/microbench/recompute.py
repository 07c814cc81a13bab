"""Full recompute against a KV cache: what the n-th token of an output costs the one way and the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibrate.decoder import SequenceInput
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench


@dataclass(frozen=True)
class TokenCost:
    """Seconds of a whole step that makes output token number `token` behind `prompt` tokens, for one sequence.

    `cached` computes that token alone and reads the others from the cache; `recomputed` computes all of them.
    """

    token: int
    prompt: int
    cached: float
    recomputed: float


def token_costs(bench: Workbench, prompt: int, tokens: Sequence[int], budget: float) -> list[TokenCost]:
    """The cost of each of `tokens` (counted from 1); each of the two ways is repeated for about `budget` seconds."""
    costs = []
    for token in tokens:
        context = prompt + token - 1
        cached = _seconds(bench, bench.sequence(1, context), budget)
        costs.append(TokenCost(token, prompt, cached, _seconds(bench, bench.sequence(context, 0), budget)))
    return costs


def _seconds(bench: Workbench, sequence: SequenceInput, budget: float) -> float:
    def one_pass() -> dict[str, float]:
        fresh = bench.fresh_tokens([sequence])
        return {"step": whole(lambda: bench.decoder.step(fresh), bench.device)}

    return median(repeat(one_pass, budget)["step"])
