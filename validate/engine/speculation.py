"""Drafts of a real engine: looked up in what each sequence says already, and kept as far as the model agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibrate.decoder import SequenceInput
from ground.errors import UserError
from sim.engine.request import Request
from sim.engine.speculative.batch import SpeculativeBatch
from sim.engine.speculative.settings import SpeculativeSettings
from validate.engine.ngram import NgramIndex


class NgramDrafter:
    """A `sim.engine.speculative.drafter.Drafter` over the tokens of real sequences.

    A step asks it thrice: the scheduler how much it drafts, the engine for the drafts, and, when the model has said
    what it would generate behind each of them, for what is kept; which then is what the scheduler is told.
    """

    def __init__(
        self, settings: SpeculativeSettings, sequences: Mapping[int, Sequence[int]], now: Callable[[], float]
    ) -> None:
        """`sequences`: prompt and generated tokens by request id. `now` tells the seconds.

        Raises:
            UserError: a draft model is asked for.
        """
        if settings.method != "ngram":
            raise UserError(
                f"engine.speculative.method is {settings.method}; expected ngram: the real engine runs one model"
            )
        self._settings = settings
        self._sequences = sequences
        self._now = now
        self._indices: dict[int, NgramIndex] = {}
        self._drafts: dict[int, list[int]] = {}  # by request id, of the step that is scheduled
        self._kept: dict[int, int] = {}
        self._lookups = self._found = 0
        self._seconds = 0.0
        self._verified = [0] * settings.tokens  # how often the draft at each position was verified
        self._agreed = [0] * settings.tokens  # and accepted, with all before it

    def drafts(self, request: Request, most: int) -> int:
        begin = self._now()
        request_id, settings = request.request_id, self._settings
        index = self._indices.get(request_id)
        if index is None:
            index = self._indices[request_id] = NgramIndex(settings.prompt_lookup_min, settings.prompt_lookup_max)
        tokens = self._sequences[request_id]
        place = index.goes_on(tokens)
        drafts = self._drafts[request_id] = [] if place is None else list(tokens[place : place + most])
        self._lookups += 1
        self._found += bool(drafts)
        self._seconds += self._now() - begin
        return len(drafts)

    def tokens(self, request: Request, count: int) -> list[int]:
        """The first `count` of its drafts, which the step verifies."""
        return self._drafts[request.request_id][:count] if count else []

    def keep(self, request: Request, drafts: Sequence[int], sampled: Sequence[int]) -> list[int]:
        """The tokens that a step gave: the drafts that are what the model says, and what it says behind them.

        `sampled`: what it generates behind the token before the drafts, and behind each of them.
        """
        kept = 0
        while kept < len(drafts) and drafts[kept] == sampled[kept]:
            kept += 1
        for position in range(len(drafts)):
            self._verified[position] += 1
            self._agreed[position] += position < kept
        self._kept[request.request_id] = kept
        return list(sampled[: kept + 1])

    def accepted(self, request: Request, drafts: int) -> int:
        return self._kept[request.request_id]

    def forget(self, request: Request) -> None:
        """It has its last token."""
        for by_request in (self._indices, self._drafts, self._kept):
            by_request.pop(request.request_id, None)

    def measured(self) -> dict[str, Any]:
        """What `engine.speculative` of a scenario takes: of each position's drafts the share that was accepted, which
        does not rise, as text of YAML; how often anything was found; and seconds a sequence and step."""
        rates: list[float] = []
        for verified, agreed in zip(self._verified, self._agreed, strict=True):
            rate = agreed / verified if verified else 0.0
            rates.append(min(rate, rates[-1]) if rates else rate)
        lookups = max(1, self._lookups)
        return {
            "speculative.acceptance": f"[{', '.join(f'{rate:.4f}' for rate in rates)}]",
            "speculative.proposals": round(self._found / lookups, 4),
            "speculative.host_seconds": self._seconds / lookups,
            "speculative.drafted": sum(self._verified),
            "speculative.accepted": sum(self._agreed),
        }


class Speculation:
    """What an engine does otherwise where `scheduler.speculation` is given."""

    def __init__(
        self,
        batch: SpeculativeBatch,
        settings: SpeculativeSettings,
        sequences: dict[int, list[int]],
        now: Callable[[], float],
    ) -> None:
        """`sequences`: prompt and generated tokens by request id, to which it adds. Raises as `NgramDrafter`."""
        self.batch = batch
        self.drafter = batch.drafter = NgramDrafter(settings, sequences, now)
        self._sequences = sequences

    def input(self, request: Request, context: int, blocks: Sequence[int]) -> SequenceInput:
        """A decoding request with the drafts that the scheduled step verifies, behind `context` cached tokens."""
        drafts = self.drafter.tokens(request, self.batch.granted[request])
        tokens = [self._sequences[request.request_id][context], *drafts]
        return SequenceInput(tokens, context, blocks, samples=len(tokens))

    def take(
        self, rows: Sequence[Request | None], batch: Sequence[SequenceInput], samples: Sequence[Sequence[int]]
    ) -> None:
        """The step has run, and the scheduler has not advanced: add what it gave to the sequences of `rows` (None: a
        partial chunk)."""
        for request, given, sampled in zip(rows, batch, samples, strict=True):
            if request is None:
                continue
            decodes = request in self.batch.granted
            new = self.drafter.keep(request, given.tokens[1:], sampled) if decodes else sampled
            self._sequences[request.request_id] += new
