"""Replay a trace in real time against any server that speaks OpenAI's `/v1/completions`.

Prompts are token ids, outputs are pinned (`min_tokens` = `max_tokens`, `ignore_eos`), the answer is streamed. The clock
of the recording starts at 0 with the trace; a request's `arrival` is the moment it was due, so time lost by a late
client counts as latency, and `Lateness` says how much that was.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ground.errors import UserError
from ground.garbage import collected_before
from sim.results.recorder import StepRecorder
from traces.table import Trace
from validate.prompts import prompt_of
from validate.recording import Lateness, Recording, request_table

if TYPE_CHECKING:
    import aiohttp

_SPIN = 0.002  # asyncio sleeps to about a millisecond; the rest of a wait polls the event loop


@dataclass(frozen=True)
class Server:
    """Where and how to ask. `api_key_variable` names the environment variable that holds the key."""

    url: str
    model: str | None = None  # None: the first that the server lists under /v1/models
    timeout: float = 600.0  # seconds a request may take
    vocabulary: int = 32_000  # token ids are drawn below this
    api_key_variable: str | None = None

    @property
    def base(self) -> str:
        """The address up to, and without, `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")


@dataclass
class _Answer:
    """What came back of one request; times on the recording's clock."""

    due: float = 0.0
    sent: float = 0.0
    first_token: float | None = None
    last_token: float | None = None
    chunks: int = 0
    usage: dict[str, Any] | None = None
    complete: bool = False  # a finish reason or the end mark was seen
    failure: str | None = None

    @property
    def status(self) -> str:
        return "failed" if self.failure else "finished"


class _Failed(Exception):
    """The server's answer is no answer; the text says why, without what differs from request to request."""


def replay(
    trace: Trace,
    server: Server,
    *,
    seed: int = 0,
    on_finish: Callable[[], None] = lambda: None,
) -> Recording:
    """Send every request of the trace at its time and record what comes back.

    A request without an arrival is due `think_time` after its parent's answer, or failure. `on_finish` is called once a
    request, whatever became of it.

    Raises:
        UserError: aiohttp is not installed, the key's variable is not set, or the server cannot be reached, lists no
            model, or failed every request.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise UserError("replay against a server needs aiohttp: pip install 'simctl[client]'") from error
    recording = asyncio.run(_Client(server, seed, on_finish).replay(trace))
    if "finished" not in recording.requests["status"]:
        reason, count = recording.failures.most_common(1)[0]
        raise UserError(f"{server.url}: none of {len(recording.requests)} requests finished; {count} said: {reason}")
    return recording


class _Client:
    def __init__(self, server: Server, seed: int, on_finish: Callable[[], None]) -> None:
        self._server = server
        self._seed = seed
        self._on_finish = on_finish
        self._headers = {"Content-Type": "application/json", **_authorization(server.api_key_variable)}
        self._answers: dict[int, _Answer] = {}
        self._children: dict[int, list[dict[str, Any]]] = {}
        self._origin = 0.0
        self._model = ""

    async def replay(self, trace: Trace) -> Recording:
        import aiohttp

        rows = trace.requests.sort("request_id").to_dicts()
        self._answers = {row["request_id"]: _Answer() for row in rows}
        roots = []
        for row in rows:
            if row["arrival"] is not None:
                roots.append(row)
            else:
                self._children.setdefault(row["parent"], []).append(row)
        roots.sort(key=lambda row: (row["arrival"], row["request_id"]))

        # No cap on connections: a queue in the client would hide the server's own.
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self._server.timeout)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, read_bufsize=1 << 20
        ) as session:
            self._model = self._server.model or await _first_model(session, self._server)
            with collected_before():
                self._origin = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    for row in roots:
                        # One body ahead: it is built while waiting, so a long prompt does not make its request late.
                        body = self._body(row)
                        await self._wait_until(row["arrival"])
                        group.create_task(self._send(session, group, row, body, row["arrival"]))
        return self._recording(rows)

    async def _send(
        self,
        session: aiohttp.ClientSession,
        group: asyncio.TaskGroup,
        row: dict[str, Any],
        body: bytes,
        due: float,
    ) -> None:
        import aiohttp

        answer = self._answers[row["request_id"]]
        answer.due, answer.sent = due, self._now()
        try:
            async with session.post(f"{self._server.base}/v1/completions", data=body) as response:
                if response.status != 200:
                    raise _Failed(f"HTTP {response.status}{_message(await response.read())}")
                async for line in response.content:
                    self._read(answer, line)
            if not answer.complete or answer.last_token is None:
                raise _Failed("the stream ended before the last token")
        except _Failed as failure:
            answer.failure = str(failure)
        except TimeoutError:
            answer.failure = f"no complete answer within {self._server.timeout:g} s"
        except aiohttp.ClientPayloadError:
            answer.failure = "disconnected in mid-stream"
        except (aiohttp.ClientError, OSError) as error:
            answer.failure = f"connection failed ({type(error).__name__})"
        except ValueError as error:  # a line longer than the buffer, or not JSON
            answer.failure = f"the stream is not server-sent events of JSON ({type(error).__name__})"
        self._on_finish()
        # As in the simulator: the user reads the answer, or the error, thinks, and goes on.
        read = self._now() if answer.failure or answer.last_token is None else answer.last_token
        for child in self._children.get(row["request_id"], ()):
            group.create_task(self._send_later(session, group, child, read + (child.get("think_time") or 0.0)))

    async def _send_later(
        self, session: aiohttp.ClientSession, group: asyncio.TaskGroup, row: dict[str, Any], due: float
    ) -> None:
        body = self._body(row)
        await self._wait_until(due)
        await self._send(session, group, row, body, due)

    def _read(self, answer: _Answer, line: bytes) -> None:
        """Take one line of the event stream."""
        if not line.startswith(b"data:"):
            return  # blank lines end an event, lines of `:` are comments
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.complete = True
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise _Failed("the stream is not server-sent events of JSON objects")
        if event.get("error"):
            raise _Failed(f"the server reported an error in mid-stream{_message(data)}")
        # A chunk counts even if its text is empty: a token may complete no character.
        if choices := event.get("choices"):
            now = self._now()
            if answer.first_token is None:
                answer.first_token = now
            answer.last_token = now
            answer.chunks += 1
            answer.complete = answer.complete or choices[0].get("finish_reason") is not None
        if usage := event.get("usage"):
            answer.usage = usage

    def _body(self, row: dict[str, Any]) -> bytes:
        request = {
            "model": self._model,
            "prompt": prompt_of(row, vocabulary=self._server.vocabulary, seed=self._seed),
            "max_tokens": row["output_tokens"],
            "min_tokens": row["output_tokens"],
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(request, separators=(",", ":")).encode()

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    async def _wait_until(self, due: float) -> None:
        coarse = due - self._now() - _SPIN
        if coarse > 0:
            await asyncio.sleep(coarse)
        while self._now() < due:
            await asyncio.sleep(0)

    def _recording(self, rows: list[dict[str, Any]]) -> Recording:
        answers = self._answers
        failures = Counter(answer.failure for answer in answers.values() if answer.failure is not None)
        return Recording(
            requests=request_table(_request_row(row, answers[row["request_id"]]) for row in rows),
            steps=StepRecorder().take_table(),
            lateness=Lateness.of(
                [a.sent - a.due for a in answers.values() if a.sent is not None and a.due is not None]
            ),
            failures=failures,
            engine={"engine": "openai", "url": self._server.url, "model": self._model},
        )


def _request_row(row: dict[str, Any], answer: _Answer) -> dict[str, Any]:
    """The row of one request: what was counted, and null for what a client cannot see."""
    usage = answer.usage or {}
    details = usage.get("prompt_tokens_details") or {}
    finished = answer.status == "finished"
    return {
        "request_id": row["request_id"],
        "replica": 0,
        "arrival": answer.due,
        "first_scheduled": None,
        "first_token": answer.first_token,
        "finish": answer.last_token if finished else None,
        "prompt_tokens": usage.get("prompt_tokens", row["prompt_tokens"]),
        # Without `usage` a chunk is taken for a token; a failed request keeps what it asked for.
        "output_tokens": usage.get("completion_tokens", answer.chunks) if finished else row["output_tokens"],
        "cached_tokens": details.get("cached_tokens"),
        "preemptions": None,
        "status": answer.status,
    }


def _message(body: bytes) -> str:
    """The server's own words about an error, numbers taken out so that like failures count as one reason."""
    try:
        answer = json.loads(body)
        text = (answer.get("error") or answer).get("message", "")
    except (ValueError, AttributeError):
        return ""
    return f": {re.sub(r'[0-9]+', 'N', str(text))[:160]}" if text else ""


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise UserError(f"environment variable {variable}: not set; expected the server's API key")
    return {"Authorization": f"Bearer {key}"}


async def _first_model(session: aiohttp.ClientSession, server: Server) -> str:
    import aiohttp

    address = f"{server.base}/v1/models"
    try:
        async with session.get(address, timeout=aiohttp.ClientTimeout(total=30)) as response:
            if response.status != 200:
                raise UserError(f"{address}: HTTP {response.status}; expected a list of models, or pass --model-name")
            name = (await response.json())["data"][0]["id"]
    except (aiohttp.ClientError, OSError) as error:
        raise UserError(f"{address}: cannot be reached ({type(error).__name__})") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{address}: lists no model; expected one, or pass --model-name") from error
    return str(name)
