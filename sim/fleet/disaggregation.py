"""Prefill/decode disaggregation: one pool computes prompts, another decodes, and KV blocks go from one to the other.

The flow is that of vLLM's NixlConnector behind a proxy (`tests/v1/kv_connector/nixl_integration/toy_proxy_server.py`)
and of Dynamo (`docs/design-docs/disagg-serving.md`): the prompt is sent to a prefill replica with one token of output;
when that has answered, the request goes to a decode replica, which holds blocks for the whole prompt, pulls those that
its prefix cache lacks, and decodes. The prefill replica holds its blocks until they have been read; as long it has the
request, as its router sees it. Blocks sent layer by layer need their place before: then the decode replica comes first,
as in SGLang (`disaggregation/decode.py`, preallocation).

The client sees a first token only once the decode replica has the prompt, whoever samples it: see
`sim.engine.remote_prompts`. Short prompts stay with the decode pool (Dynamo's and TensorRT-LLM's conditional
disaggregation, `max_local_prefill_length`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from simpy.events import URGENT

from sim.engine.request import Request
from sim.fleet.disaggregation_settings import DisaggregationSettings
from sim.fleet.links.network import Link, Network, Port, Transfer
from sim.fleet.pool import Pool
from sim.fleet.replica import Replica, ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import FINISHED, REJECTED, OnEnd, World

# Makes what stands before a pool, which it makes by the last argument.
Serve = Callable[[World, OnEnd, Callable[[OnEnd], Pool]], Service]


@dataclass(eq=False, slots=True)
class _Handover:
    """One request on its way. `first` is what the prefill pool knows of it: the same prompt, and one token."""

    request: Request
    first: Request
    at_prefill: bool = False  # the prefill pool has it
    at_decode: bool = False  # so has the decode pool
    prefill: Replica | None = None
    decode: Replica | None = None
    blocks: int = 0
    prefilled: float | None = None  # when its prompt was computed
    begun: float = 0.0  # when it began to be sent
    parts: list[Transfer] = field(default_factory=list)
    missing: int = 0  # parts that have not come


def _as_it_is(world: World, on_end: OnEnd, make: Callable[[OnEnd], Pool]) -> Service:
    return make(on_end)


class Disaggregation:
    """A `Service` of two pools."""

    def __init__(
        self,
        world: World,
        settings: DisaggregationSettings,
        prefill: ReplicaKind,
        decode: ReplicaKind,
        on_end: OnEnd,
        *,
        block_bytes: int,
        layers: int,
        serve: Mapping[str, Serve] | None = None,
    ) -> None:
        """`block_bytes`: of one KV block, all ranks; `layers` of the model; `serve`, by the name of a pool, what brings
        its replicas up and down."""
        self.network = Network(world.clock)
        world.networks.append(self.network)
        self._world = world
        self._settings = settings
        self._on_end = on_end
        self._block_bytes = block_bytes
        self._layers = layers
        self._ports: dict[int, Port] = {}  # by replica
        self._fabric: Sequence[Link] = ()
        if settings.fabric is not None:
            bandwidth, latency, _ = settings.fabric.figures("")
            self._fabric = (self.network.link("KV fabric", bandwidth, latency),)
        self._under_way: dict[int, _Handover] = {}  # by request_id, until it decodes
        if settings.min_prompt and settings.min_prompt_counts == "uncached":
            world.leap = False  # prefix caches are looked at between steps, where a leap has not yet taken its blocks
        serve = serve or {}
        # Prefill first: of equal instants the lower numbers come first, as prompts do.
        self.prefill, self._prefill = self._pool("prefill", prefill, self._prefill_ended, serve)
        self.decode, self._decode = self._pool("decode", decode, self._decode_ended, serve)

    def submit(self, request: Request) -> None:
        limit = self.decode.kind.engine.max_model_len
        if self._stays(request):
            self._decode.submit(request)
            return
        if limit is not None and request.prompt_tokens + request.output_tokens > limit:
            self._on_end(request, REJECTED)
            return
        hand = _Handover(request, _prompt_of(request))
        # A single token that the prefill engine samples needs no decode engine.
        hand.first.kept = not (self._settings.first_token == "prefill" and request.output_tokens == 1)
        self._under_way[request.request_id] = hand
        if self._settings.transfer == "layerwise" and hand.first.kept:
            self._send_to_decode(hand)
        else:
            self._send_to_prefill(hand)

    def abort(self, request: Request) -> None:
        hand = self._under_way.get(request.request_id)
        if hand is None:
            self._decode.abort(request)
        else:
            self._drop(hand)

    def close(self, end: float) -> None:
        self._prefill.close(end)
        self._decode.close(end)

    def _pool(self, name: str, kind: ReplicaKind, on_end: OnEnd, serve: Mapping[str, Serve]) -> tuple[Pool, Service]:
        """A pool, and what stands before it."""
        own = self._settings.prefill if name == "prefill" else self._settings.decode
        kind = replace(kind, connect=partial(_Connector, self))
        made: list[Pool] = []

        def make(ended: OnEnd) -> Pool:
            made.append(
                Pool(
                    self._world,
                    kind,
                    ended,
                    replicas=own.replicas,
                    router=own.router,
                    routing=own.routing,
                    name=name,
                )
            )
            return made[0]

        service = serve.get(name, _as_it_is)(self._world, on_end, make)
        return made[0], service

    def _stays(self, request: Request) -> bool:
        settings = self._settings
        if not settings.min_prompt:
            return False
        tokens = request.prompt_tokens
        if settings.min_prompt_counts == "uncached":
            tokens -= max((one.engine.scheduler.cached(request) for one in self.decode.members), default=0)
        return tokens < settings.min_prompt

    # From pool to pool.

    def _send_to_prefill(self, hand: _Handover) -> None:
        hand.at_prefill = True
        self._prefill.submit(hand.first)

    def _send_to_decode(self, hand: _Handover) -> None:
        request = hand.request
        request.remote = True
        if self._settings.first_token == "prefill":
            request.target, request.generated = request.prompt_tokens, 1
        else:
            request.target, request.generated = request.prompt_tokens - 1, 0
        hand.at_decode = True
        self._decode.submit(request)

    def _prefill_ended(self, first: Request, status: str) -> None:
        if status == FINISHED and first.kept:
            return  # its blocks have been read
        hand = self._under_way[first.request_id]
        hand.at_prefill = False
        if status == FINISHED:
            self._tell(hand)
            hand.request.first_token, hand.request.finish = first.first_token, first.finish
        self._drop(hand)
        self._on_end(hand.request, status)

    def _decode_ended(self, request: Request, status: str) -> None:
        hand = self._under_way.get(request.request_id)
        if hand is not None:
            hand.at_decode = False
            self._drop(hand)
        self._on_end(request, status)

    def _drop(self, hand: _Handover) -> None:
        """It is on its way no more: whoever still has it is to forget it."""
        del self._under_way[hand.request.request_id]
        for transfer in hand.parts:
            self.network.cancel(transfer)
        if hand.at_prefill:
            self._prefill.abort(hand.first)
        if hand.at_decode:
            self._decode.abort(hand.request)

    # What replicas say.

    def room(self, replica: Replica, request: Request, blocks: int) -> None:
        """A decode replica has room for a prompt, and wants so many blocks of it."""
        hand = self._under_way[request.request_id]
        hand.decode, hand.blocks = replica, blocks
        if self._settings.transfer == "layerwise":
            self._send_to_prefill(hand)
        else:
            self._transfer(hand, blocks * self._block_bytes, parts=1)

    def began(self, replica: Replica, first: Request) -> None:
        """A prefill replica begins with a prompt."""
        if self._settings.transfer == "layerwise":
            hand = self._under_way[first.request_id]
            hand.prefill = replica
            size = hand.blocks * self._block_bytes
            self._transfer(hand, size - size // self._layers, parts=2)

    def prefilled(self, replica: Replica, first: Request) -> None:
        """A prefill replica has computed a prompt."""
        hand = self._under_way[first.request_id]
        hand.prefill = replica
        self._tell(hand)
        if self._settings.transfer == "layerwise":
            self._transfer(hand, hand.blocks * self._block_bytes // self._layers, parts=2)
        else:
            self._send_to_decode(hand)

    def joined(self, replica: Replica, request: Request, now: float) -> None:
        """A decode replica goes on with a request from the step on that begins now."""
        hand = self._under_way.pop(request.request_id)
        assert hand.prefilled is not None
        self._world.requests.replica[request.request_id] = replica.number
        self._world.events.append(
            hand.prefilled,
            replica.number,
            "joined",
            request_id=request.request_id,
            seconds=now - hand.prefilled,
            amount=request.target,
        )

    def _tell(self, hand: _Handover) -> None:
        """What became of the prompt."""
        first, request, now = hand.first, hand.request, self._world.clock.now
        assert first.first_scheduled is not None
        hand.prefilled = now
        request.first_scheduled, request.cached_tokens = first.first_scheduled, first.cached_tokens
        request.preemptions += first.preemptions
        if hand.prefill is not None:
            self._world.events.append(
                first.first_scheduled,
                hand.prefill.number,
                "prefilled",
                request_id=first.request_id,
                seconds=now - first.first_scheduled,
                amount=first.prompt_tokens,
            )

    # KV blocks.

    def _transfer(self, hand: _Handover, size: int, *, parts: int) -> None:
        """Send so many bytes, of a prompt that is sent in so many parts."""
        assert hand.prefill is not None and hand.decode is not None
        if not hand.parts:
            hand.missing = parts
        hand.begun = self._world.clock.now
        path = (self._port(hand.prefill).out, *self._fabric, self._port(hand.decode).into)
        hand.parts.append(self.network.transfer(path, size, lambda: self._part_came(hand)))

    def _port(self, replica: Replica) -> Port:
        if replica.number not in self._ports:
            bandwidth, latency, _ = self._settings.link.figures("")
            self._ports[replica.number] = self.network.port(f"replica {replica.number}", bandwidth, latency)
        return self._ports[replica.number]

    def _part_came(self, hand: _Handover) -> None:
        hand.missing -= 1
        if not hand.missing:
            # Not at once: a transfer over unlimited links ends as it begins, within a call of the decode scheduler.
            event = self._world.clock.at(self._world.clock.now, URGENT)
            event.callbacks = [lambda _: self._came(hand)]

    def _came(self, hand: _Handover) -> None:
        """The decode replica has the prompt."""
        request, now = hand.request, self._world.clock.now
        if self._under_way.get(request.request_id) is not hand:
            return  # it was dropped at this very instant
        assert hand.prefill is not None and hand.decode is not None and hand.prefilled is not None
        hand.at_prefill = False
        hand.parts.clear()
        if self._settings.first_token == "prefill":
            request.first_token = now
        self._world.events.append(
            hand.begun,
            hand.decode.number,
            "kv_transfer",
            request_id=request.request_id,
            seconds=now - hand.begun,
            amount=hand.blocks * self._block_bytes,
            detail=f"from replica {hand.prefill.number}",
        )
        hand.prefill.read(hand.first)
        hand.decode.engine.received(request)


class _Connector:
    """A `sim.engine.remote_prompts.KvConnector` of one replica."""

    def __init__(self, service: Disaggregation, replica: Replica) -> None:
        self._service = service
        self._replica = replica

    def receive(self, request: Request, blocks: int) -> None:
        self._service.room(self._replica, request, blocks)

    def joined(self, request: Request, now: float) -> None:
        self._service.joined(self._replica, request, now)

    def began(self, request: Request) -> None:
        self._service.began(self._replica, request)

    def prefilled(self, request: Request) -> None:
        self._service.prefilled(self._replica, request)


def _prompt_of(request: Request) -> Request:
    """The same with one token of output."""
    first = request.again(request.arrival)
    first.output_tokens = 1
    return first
