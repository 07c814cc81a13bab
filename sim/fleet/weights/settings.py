"""What is set on a host's weight cache, and what a run with one takes for granted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ground.assumption import Assumption
from ground.errors import UserError
from ground.spec import Spec
from sim.fleet.weights.eviction import EVICTIONS
from sim.fleet.weights.models import Models

_KEY = "fleet.weight_cache"
_NAMED = 5  # models that a note lists

Bytes = Annotated[int, Field(gt=0, le=1 << 50)]  # up to 1 PiB: the sum over a run's loads fits into 64 bits


class WeightCacheSettings(Spec):
    capacity_bytes: PositiveInt | None = Field(
        default=None,
        le=1 << 62,
        description="bytes of weights a host holds at once, those on their way included; any if not given",
    )
    capacity_models: PositiveInt | None = Field(default=None, description="models it holds at once; any if not given")
    model_bytes: Bytes | None = Field(
        default=None, description="bytes of a model's weights; those of the scenario's model if not given"
    )
    bytes_of: dict[str, Bytes] = Field(default={}, description="model name → bytes, where it differs from that")
    load_bandwidth: Annotated[float, Field(ge=1.0, le=1e18)] | Literal["unlimited"] = Field(
        description="bytes/s at which a host loads weights, shared by the loads under way"
    )
    peer_bandwidth: Annotated[float, Field(ge=1.0, le=1e18)] | Literal["unlimited"] | None = Field(
        default=None,
        description="bytes/s at which a host sends weights that it holds to others that load them, shared by all that "
        "it sends; hosts send nothing if not given",
    )
    load_latency: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="seconds of a load after the copy that no other load makes longer: the start of a process, the "
        "engine's initialisation, the capture of graphs",
    )
    load_while_serving: bool = Field(
        default=True,
        description="whether a host begins requests of the models that it has while it loads others; those that run go "
        "on either way",
    )
    single_flight: bool = Field(
        default=True,
        description="requests that miss the same model wait for one load; otherwise each makes a load of its own",
    )
    ttl: PositiveFloat | None = Field(default=None, description="idle seconds until weights are dropped; never if none")
    eviction: str = Field(default="lru", description="which idle weights give way where memory is short")
    update_every: float | None = Field(
        default=None,
        ge=1e-3,
        description="seconds until a model has a new version, which the next request for it loads",
    )
    preload: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="models that every host holds from when it is ready"
    )

    @model_validator(mode="after")
    def _known(self) -> WeightCacheSettings:
        if self.eviction not in EVICTIONS:
            raise ValueError(f"unknown eviction {self.eviction!r}, expected one of {', '.join(EVICTIONS)}")
        if len(set(self.preload)) < len(self.preload):
            raise ValueError(f"preload is {list(self.preload)}; expected every model once")
        if self.capacity_models is not None and len(self.preload) > self.capacity_models:
            raise ValueError(f"preload has {len(self.preload)} models; expected at most {self.capacity_models}")
        return self

    def check_fit(self, models: Models, asked: Sequence[str]) -> None:
        """Raises UserError: one of the models, or those of `preload` together, are larger than a host's memory."""
        capacity = self.capacity_bytes
        if capacity is None:
            return
        for name in dict.fromkeys((*asked, *self.preload)):
            if models.size(name) > capacity:
                raise UserError(
                    f"{_KEY}.capacity_bytes is {capacity}; "
                    f"expected at least the {models.size(name)} bytes of model {name!r}"
                )
        together = sum(models.size(name) for name in self.preload)
        if together > capacity:
            raise UserError(f"{_KEY}.preload: models of {together} bytes; expected at most capacity_bytes ({capacity})")

    def assumptions(self, model: str, default_size: int, unnamed: int, asked: Sequence[str]) -> list[Assumption]:
        """`model`: the scenario's; `default_size`: bytes of weights; `unnamed`: requests that name no model; `asked`:
        the models of all requests."""

        def term(key: str, value: float | int | str, unit: str, given: bool, note: str) -> Assumption:
            return Assumption(f"{_KEY}.{key}", value, unit, "user" if given else "assumed", note)

        asked_for = set(asked)
        given = self.model_bytes is not None
        size_note = "given in the scenario" if given else f"every model is taken to be a fine-tune of {model}"
        limits = [
            f"{limit} {unit}"
            for limit, unit in ((self.capacity_bytes, "bytes"), (self.capacity_models, "models"))
            if limit is not None
        ]
        terms = [
            term("model_bytes", default_size, "bytes", given, size_note),
            term(
                "capacity",
                ", ".join(limits) or "unlimited",
                "",
                bool(limits),
                "memory for weights alone; the KV pool is as large as without a weight cache",
            ),
            term("load_bandwidth", self.load_bandwidth, "bytes/s", True, "a host's own, shared equally by its loads"),
            term(
                "load_latency",
                self.load_latency,
                "s",
                "load_latency" in self.model_fields_set,
                "of a load after its copy; no load and no step makes another's longer",
            ),
            term(
                "engine",
                "one a host",
                "",
                False,
                "requests of all models share its steps, as those of adapters do, but no block of the prefix cache",
            ),
        ]
        if self.peer_bandwidth is not None:
            note = "of a host that sends weights to others, shared equally; they come from where they come faster"
            terms.append(term("peer_bandwidth", self.peer_bandwidth, "bytes/s", True, note))
        if self.preload:
            note = "on every host as soon as it is ready; the time to load them is not counted"
            terms.append(term("preload", len(self.preload), "models", True, note))
        for key, names in (("bytes_of", self.bytes_of), ("preload", self.preload)):
            if idle := [name for name in names if name not in asked_for]:
                more = ", ..." if len(idle) > _NAMED else ""
                note = f"of {key}, for which no request asks: {', '.join(idle[:_NAMED])}{more}"
                terms.append(term(f"{key}.unasked", len(idle), "models", True, note))
        if unnamed:
            terms.append(term("unnamed", unnamed, "requests", False, f"that name no model: they ask for {model}"))
        return terms
