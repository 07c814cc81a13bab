"""A small server that speaks OpenAI's completions protocol, and misbehaves on demand."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered; delays in seconds, `*_after` in chunks."""

    status: int = 200
    first: float = 0.0
    gap: float = 0.0
    tokens: int | None = None  # None: as many as asked for
    disconnect_after: int | None = None
    stall_after: int | None = None
    error_after: int | None = None
    garbage_after: int | None = None
    stop_after: int | None = None  # the stream ends politely, but early
    usage: bool = True
    cached: int | None = None


@dataclass
class FakeServer:
    """Listens on a free port in a thread of its own."""

    behaviour: Behaviour = Behaviour()
    exceptions: dict[int, Behaviour] = field(default_factory=dict)  # tokens asked for → another behaviour
    models: tuple[str, ...] = ("tiny",)
    received: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def behave(self, *, when_asked: int | None = None, **behaviour: Any) -> None:
        """Answer like this, always or only to requests for `when_asked` tokens."""
        if when_asked is None:
            self.behaviour = Behaviour(**behaviour)
        else:
            self.exceptions[when_asked] = Behaviour(**behaviour)

    def start(self) -> None:
        ready = threading.Event()

        def serve() -> None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            self._closing = asyncio.Event()
            self._loop.run_until_complete(self._serve(ready))
            self._loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self._closing.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append(body)
        self.keys.append(request.headers.get("Authorization"))
        behaviour = self.exceptions.get(body["max_tokens"], self.behaviour)
        if behaviour.status != 200:
            error = {"error": {"message": f"request {len(self.received)} is refused"}}
            return web.json_response(error, status=behaviour.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(behaviour.first)
        tokens = behaviour.tokens or body["max_tokens"]
        for index in range(tokens):
            if index == behaviour.disconnect_after:
                request.transport.abort()
                return response
            if index == behaviour.stall_after:
                await self._closing.wait()
                return response
            if index == behaviour.error_after:
                await _event(response, {"error": {"message": "out of memory"}})
                return response
            if index == behaviour.garbage_after:
                await response.write(b"data: {not json\n\n")
                return response
            if index == behaviour.stop_after:
                return response
            if index:
                await asyncio.sleep(behaviour.gap)
            reason = "length" if index == tokens - 1 else None
            await _event(response, {"choices": [{"index": 0, "text": "", "finish_reason": reason}], "usage": None})
        if behaviour.usage:
            usage: dict[str, Any] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
            if behaviour.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": behaviour.cached}
            await _event(response, {"choices": [], "usage": usage})
        await response.write(b": a comment\n\ndata: [DONE]\n\n")
        return response


async def _event(response: web.StreamResponse, payload: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(payload).encode() + b"\n\n")


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()
