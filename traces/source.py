"""Where a scenario's requests come from: a trace file or a synthetic spec, then cut and scaled."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ground.spec import Spec
from traces import scaling
from traces.context_limit import ContextLimit, limit_context
from traces.dequantise import dequantise
from traces.loading import read
from traces.synth import SynthSpec, generate
from traces.synth.arrivals import Arrivals
from traces.table import Trace


class First(Spec):
    """The beginning of the trace; exactly one of the three."""

    seconds: PositiveFloat | None = None
    requests: PositiveInt | None = None
    share: float | None = Field(None, gt=0, le=1)  # of the requests, rounded up

    @model_validator(mode="after")
    def _one(self) -> First:
        if [self.seconds, self.requests, self.share].count(None) != 2:
            raise ValueError("give exactly one of seconds, requests and share")
        return self


class Scale(Spec):
    """Applied in this order: stretch the clock, thin, superpose copies."""

    stretch: PositiveFloat | None = None  # 2: twice as long, half the rate
    thin: float | None = Field(None, gt=0, le=1)  # probability to keep a session or single request
    copies: PositiveInt | None = None


class TraceSource(Spec):
    """Exactly one of `file` and `synth`; then dequantise, `first`, `scale`, `context_limit`, in this order."""

    file: str | None = None  # relative to the folder of the scenario
    format: str | None = None  # without it the file is sniffed
    columns: dict[str, str | int] | None = None  # canonical name → column of the file
    session_arrivals: Arrivals | None = None  # starts the sessions of a file that has no common clock
    dequantise: bool = False
    synth: SynthSpec | None = None
    first: First | None = None
    scale: Scale | None = None
    context_limit: ContextLimit | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> TraceSource:
        if (self.file is None) == (self.synth is None):
            raise ValueError("give exactly one of file and synth")
        if self.synth is not None and (self.format or self.columns or self.session_arrivals or self.dequantise):
            raise ValueError("format, columns, session_arrivals and dequantise belong to file, not to synth")
        return self

    def load(self, base_dir: Path, seed: int) -> Trace:
        """Read or draw the trace; paths start at `base_dir`.

        Raises:
            UserError: see `traces.loading.read` and `traces.synth.generate`.
        """
        if self.synth is not None:
            trace = generate(self.synth, seed, base_dir=base_dir)
        else:
            assert self.file is not None
            path = base_dir / self.file
            trace = read(path, self.format, self.columns, session_arrivals=self.session_arrivals, seed=seed)
            if self.dequantise:
                trace = dequantise(trace, seed)
        if self.first is not None:
            trace = scaling.first(
                trace, seconds=self.first.seconds, requests=self.first.requests, share=self.first.share
            )
        if self.scale is not None:
            if self.scale.stretch is not None:
                trace = scaling.time_stretch(trace, self.scale.stretch)
            if self.scale.thin is not None:
                trace = scaling.thin(trace, self.scale.thin, seed)
            if self.scale.copies is not None:
                trace = scaling.superpose(trace, self.scale.copies, seed)
        return trace if self.context_limit is None else limit_context(trace, self.context_limit)
