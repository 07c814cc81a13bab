"""The synthetic trace as a user writes it in YAML."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt, model_validator

from ground.spec import Spec, check_spec, read_yaml
from traces.synth.arrivals import Arrivals
from traces.synth.clients import ClientMix
from traces.synth.labels import Labels
from traces.synth.lengths import Count
from traces.synth.prefixes import Prefixes
from traces.synth.resample import Resample
from traces.synth.sessions import Sessions


class Lengths(Spec):
    """Prompt and output drawn independently of each other, or pairs resampled from a trace."""

    prompt: Count | None = None  # new tokens; a shared prefix and earlier turns come on top
    output: Count | None = None
    resample: Resample | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Lengths:
        drawn = self.prompt is not None and self.output is not None
        either = self.prompt is not None or self.output is not None
        if not drawn and self.resample is None:
            raise ValueError("give prompt and output, or resample")
        if either and self.resample is not None:
            raise ValueError("give prompt and output, or resample, not both")
        return self


class SynthSpec(Spec):
    """Either `arrivals` and `lengths`, with what else is wanted, or a mix of recorded `clients`.

    `requests` and `duration` bound the trace; with both, whichever comes first.
    """

    requests: PositiveInt | None = None
    duration: PositiveFloat | None = None  # seconds within which requests (or sessions) begin
    arrivals: Arrivals | None = None
    lengths: Lengths | None = None
    prefixes: Prefixes | None = None
    sessions: Sessions | None = None
    labels: Labels | None = None
    clients: ClientMix | None = None
    block_tokens: PositiveInt = 16  # tokens of a prefix id

    @model_validator(mode="after")
    def _bounded(self) -> SynthSpec:
        if self.requests is None and self.duration is None:
            raise ValueError("give requests, duration or both")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> SynthSpec:
        drawn = [self.arrivals, self.lengths, self.prefixes, self.sessions, self.labels]
        if self.clients is None:
            if self.arrivals is None or self.lengths is None:
                raise ValueError("give arrivals and lengths, or clients")
        elif any(part is not None for part in drawn):
            raise ValueError(
                "clients bring their own arrivals and lengths; give no arrivals, lengths, prefixes, sessions or labels"
            )
        elif self.duration is None:
            raise ValueError("clients need a duration")
        return self


def load_spec(path: Path) -> SynthSpec:
    """Read a spec from a YAML file.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, or has a wrong key, type or value; names the key.
    """
    return check_spec(SynthSpec, read_yaml(path), str(path))
