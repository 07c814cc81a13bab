"""What a session asks for beside its tokens: model, urgency, class. All its turns ask for the same."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from ground.spec import Spec
from traces.streams import stream
from traces.synth.classes import ServiceClass, class_columns, class_lengths, draw_classes
from traces.synth.lengths import zipf_ranks

Ints = NDArray[np.int64]


class Models(Spec):
    """`model-0` is asked for most often: model k with probability ∝ 1/(k + 1)^zipf."""

    count: PositiveInt
    zipf: float = Field(0.0, ge=0)  # 0: all equally popular


class Labels(Spec):
    models: Models | None = None
    priorities: dict[int, PositiveFloat] | None = Field(
        None, min_length=1
    )  # priority → its weight; larger = more urgent
    classes: dict[str, ServiceClass] | None = Field(None, min_length=1)

    def lengths(self, seed: int, session: Ints, prompt: Ints, output: Ints) -> tuple[Ints, Ints]:
        """New prompt and output tokens of each request: those that were drawn, but where its class has its own."""
        if self.classes is None:
            return prompt, output
        return class_lengths(self.classes, seed, draw_classes(self.classes, seed, session), prompt, output)

    def draw(self, seed: int, session: Ints) -> dict[str, pl.Series]:
        """Columns of the request table. `session` is the session of each request, from 0 on."""
        sessions = int(session.max()) + 1
        columns = {}
        if self.models is not None:
            ranks = zipf_ranks(stream(seed, "models"), self.models.count, self.models.zipf, sessions)
            names = pl.Series([f"model-{rank}" for rank in range(self.models.count)])
            columns["model"] = names.gather(pl.Series(ranks[session]))
        if self.priorities is not None:
            shares = np.array(list(self.priorities.values()))
            levels = np.array(list(self.priorities), dtype=np.int64)
            drawn = stream(seed, "priorities").choice(levels, sessions, p=shares / shares.sum())
            columns["priority"] = pl.Series(drawn[session])
        if self.classes is not None:
            columns |= class_columns(self.classes, draw_classes(self.classes, seed, session))
        return columns
