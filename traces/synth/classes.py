"""Service classes of a synthetic trace: how many requests are of each, until when wanted, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import PositiveFloat

from ground.spec import Spec
from traces.streams import stream
from traces.synth.lengths import Count

Ints = NDArray[np.int64]


class ServiceClass(Spec):
    """`weight`: of its sessions among all. Lengths that are not given are those of the trace."""

    weight: PositiveFloat
    deadline: PositiveFloat | None = None  # seconds after arrival
    prompt: Count | None = None
    output: Count | None = None


def draw_classes(classes: Mapping[str, ServiceClass], seed: int, session: Ints) -> Ints:
    """Which of the classes each request is of, the same for all of a session."""
    weights = np.array([each.weight for each in classes.values()])
    drawn = stream(seed, "classes").choice(len(classes), int(session.max()) + 1, p=weights / weights.sum())
    chosen: Ints = drawn[session]
    return chosen


def class_columns(classes: Mapping[str, ServiceClass], chosen: Ints) -> dict[str, pl.Series]:
    """Columns of the request table."""
    names = pl.Series(list(classes), dtype=pl.String).gather(pl.Series(chosen))
    deadlines = pl.Series([each.deadline for each in classes.values()], dtype=pl.Float64)
    columns = {"slo_class": names}
    return columns if deadlines.null_count() == len(deadlines) else columns | {"deadline": deadlines.gather(chosen)}


def class_lengths(
    classes: Mapping[str, ServiceClass], seed: int, chosen: Ints, prompt: Ints, output: Ints
) -> tuple[Ints, Ints]:
    """New prompt and output tokens of each request, those of the classes that have their own drawn anew."""
    prompt, output = prompt.copy(), output.copy()
    for place, (name, each) in enumerate(classes.items()):
        own = np.flatnonzero(chosen == place)
        for kind, lengths, tokens in (("prompt", each.prompt, prompt), ("output", each.output, output)):
            if lengths is not None:
                tokens[own] = lengths.draw(stream(seed, f"{kind} tokens of {name}"), len(own))
    return prompt, output
