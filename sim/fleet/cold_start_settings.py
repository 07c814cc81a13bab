"""What is set on the start of a replica, and what a run with cold starts takes for granted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ground.assumption import Assumption
from ground.spec import Spec
from sim.fleet.duration import Duration, Lognormal, mean_of

_KEY = "fleet.cold_start"
_OF_VLLM = "of a small model with compiled code cached, vLLM issue 20264; another engine or model may take far longer"
# From that log: 34 s of initialisation, 17 s of them for 67 CUDA graphs; weights are a part of their own.
INIT_SECONDS = 34.0 - 17.0 - 0.7
GRAPH_SECONDS = 17.0
GRAPHS = 67


class NodeSettings(Spec):
    """Machines that replicas run on, none of them on two. Without them every replica finds a node of its own."""

    gpus: int = Field(gt=0, description="of a node")
    ready: int = Field(default=0, ge=0, description="nodes that are there when the run begins, empty and without image")
    max: int | None = Field(default=None, gt=0, description="nodes there may be; any number if not given")
    keep: float = Field(default=600.0, ge=0, description="seconds until a node that nobody uses is given back")

    @model_validator(mode="after")
    def _ready_fit(self) -> NodeSettings:
        if self.max is not None and self.ready > self.max:
            raise ValueError(f"ready is {self.ready} and max is {self.max}; expected at most max")
        return self


class WeightSourceSettings(Spec):
    """`disk` and `host` are links of each node, shared by the replicas that start on it; `shared` is one link for all,
    such as a network file system; `peer` is the link of a ready replica, the one with the fewest copies under way, and
    where none is ready it is the `fallback`."""

    source: Literal["disk", "host", "shared", "peer"] = "disk"
    bandwidth: float = Field(ge=1.0, le=1e18, description="bytes/s of a link")
    fallback_bandwidth: float | None = Field(
        default=None, ge=1.0, le=1e18, description="bytes/s from the node's disk where no peer is ready"
    )
    bytes: int | None = Field(
        default=None, gt=0, le=1 << 50, description="of a replica's weights; those of the scenario's model if not given"
    )

    @model_validator(mode="after")
    def _fallback_fits(self) -> WeightSourceSettings:
        if (self.source == "peer") != (self.fallback_bandwidth is not None):
            raise ValueError(
                f"source is {self.source} and fallback_bandwidth is {self.fallback_bandwidth}; "
                "expected one with peer, and only there"
            )
        return self


class SleepSettings(Spec):
    """Engines that sleep instead of being given back (vLLM's sleep mode), and are woken instead of started."""

    replicas: int = Field(gt=0, description="engines that may sleep at once")
    ready: int = Field(default=0, ge=0, description="of them when the run begins")
    level: Literal[1, 2] = Field(
        default=1, description="1: weights wait in host memory; 2: they are loaded again, as at a start"
    )
    wake: Duration = Field(description="seconds to wake, but for the weights of level 2")
    share: float = Field(ge=0, le=1, description="of a replica's price that a sleeping engine costs")

    @model_validator(mode="after")
    def _ready_fit(self) -> SleepSettings:
        if self.ready > self.replicas:
            raise ValueError(f"ready is {self.ready} and replicas is {self.replicas}; expected at most replicas")
        return self


class ColdStartSettings(Spec):
    """The parts of a start, one after the other. Those that are not given take no time, but for the engine's."""

    node_provision: Duration = Field(default=0.0, description="seconds until a new node is there")
    image_bytes: int = Field(default=0, ge=0, le=1 << 50, description="of the image, pulled once a node")
    image_bandwidth: float | None = Field(
        default=None, ge=1.0, le=1e18, description="bytes/s of a node's pulls; needed with image_bytes"
    )
    weights: WeightSourceSettings | None = Field(
        default=None, description="where weights come from; no time if not given"
    )
    engine_init: Duration | None = Field(
        default=None,
        description="seconds to start the process, profile memory and compile; a published time if not given",
    )
    graph_capture: Duration | None = Field(
        default=None, description="seconds to capture all graphs; measured, or published, if not given"
    )
    nodes: NodeSettings | None = None
    sleep: SleepSettings | None = None

    @model_validator(mode="after")
    def _image_fits(self) -> ColdStartSettings:
        if self.image_bytes and self.image_bandwidth is None:
            raise ValueError(f"image_bytes is {self.image_bytes} and image_bandwidth is not given; expected bytes/s")
        return self

    def resolve(
        self, weight_bytes: int, graphs: int, capture_seconds: float | None
    ) -> tuple[ColdStartSettings, list[Assumption]]:
        """The same with every number, and where those come from.

        Args:
            weight_bytes: of the scenario's model, on all GPUs of a replica.
            graphs: that the engine captures when it starts.
            capture_seconds: of one graph, where the profile measured it.
        """
        found: dict[str, object] = {}
        notes: list[Assumption] = []

        def note(name: str, value: float | str, unit: str, source: str, text: str) -> None:
            notes.append(Assumption(f"{_KEY}.{name}", value, unit, source, text))  # type: ignore[arg-type]

        for name in ("node_provision", "engine_init", "graph_capture"):
            given = getattr(self, name)
            if name in self.model_fields_set and given is not None:
                text = "log-normal, drawn for each start" if isinstance(given, Lognormal) else "of each start"
                note(name, mean_of(given), "s", "user", text)
        if "node_provision" not in self.model_fields_set:
            note("node_provision", 0.0, "s", "assumed", "nodes are there at once, since no time was given")
        if self.engine_init is None:
            found["engine_init"] = INIT_SECONDS
            note("engine_init", INIT_SECONDS, "s", "assumed", f"without weights and graphs, {_OF_VLLM}")
        if self.graph_capture is None:
            each = GRAPH_SECONDS / GRAPHS if capture_seconds is None else capture_seconds
            found["graph_capture"] = graphs * each
            measured = capture_seconds is not None
            text = f"{graphs} graphs at {each:.3g} s, " + ("as the profile holds" if measured else _OF_VLLM)
            note("graph_capture", graphs * each, "s", "measured" if measured else "assumed", text)
        if self.image_bytes:
            note("image_bytes", self.image_bytes, "bytes", "user", "pulled once a node, unpacking not counted")
        if self.weights is None:
            note("weights", 0.0, "s", "assumed", "weights are there at once, since no source was given")
        else:
            if self.weights.bytes is None:
                found["weights"] = self.weights.model_copy(update={"bytes": weight_bytes})
                note(
                    "weights.bytes", weight_bytes, "bytes", "assumed", "those of the scenario's model, on all its GPUs"
                )
            text = f"from {self.weights.source}; copies over one link share it"
            note("weights.bandwidth", self.weights.bandwidth, "bytes/s", "user", text)
        if self.nodes is None:
            note("nodes", "one a replica", "", "assumed", "every start provisions a node and pulls the image")
        else:
            text = "a replica is paid for from when it is asked for; GPUs of a node that no replica has are not"
            note("nodes.gpus", self.nodes.gpus, "GPUs", "user", text)
        if self.sleep is not None:
            text = f"vLLM's sleep level {self.sleep.level}; a sleeping engine's GPUs are paid for at a share"
            note("sleep.share", self.sleep.share, "share", "user", text)
            note("sleep.power", "idle", "", "assumed", "a sleeping engine's GPUs draw what idle ones do")
        return self.model_copy(update=found), notes
