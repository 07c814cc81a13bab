"""Who says what is drafted and what of it the model accepts: by lot in a simulation, by tokens in a real engine."""

from __future__ import annotations

from typing import Protocol

from ground.errors import UserError
from sim.engine.request import Request
from sim.engine.speculative.draws import Draws
from sim.engine.speculative.settings import SpeculativeSettings


class Drafter(Protocol):
    """What the scheduler asks. Both are asked about a request that has `generated` tokens, once each in a step."""

    def drafts(self, request: Request, most: int) -> int:
        """How many tokens are drafted behind its next one, at most `most`."""

    def accepted(self, request: Request, drafts: int) -> int:
        """How many of them, of which the step has verified `drafts`, are what the model would have generated."""


class DrawnDrafter:
    """Both are drawn by a request's number and how far it is, so that they do not depend on when a step computes it.

    A draft is as long as it may be. Draws of one request are independent: that real ones come in bursts, where a text
    repeats itself, changes the spread of latencies and not their mean.
    """

    def __init__(self, settings: SpeculativeSettings) -> None:
        """Raises UserError: nobody said how often drafts are accepted."""
        if settings.survival is None:
            raise UserError(
                "engine.speculative.acceptance is not given; expected the chance that a draft is accepted, or a rate "
                "for each position, as measurement.json of a run on the reference engine has it"
            )
        self._survival = settings.survival
        self._proposals = settings.proposals
        self._found = Draws(settings.seed or 0, "speculative.proposals")
        self._agreed = Draws(settings.seed or 0, "speculative.acceptance")

    def drafts(self, request: Request, most: int) -> int:
        return most if self._found.at(request.request_id, request.generated) < self._proposals else 0

    def accepted(self, request: Request, drafts: int) -> int:
        drawn = self._agreed.at(request.request_id, request.generated)
        accepted = 0
        while accepted < drafts and drawn < self._survival[accepted]:
            accepted += 1
        return accepted
