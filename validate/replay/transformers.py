"""Replay a trace in real time on Hugging Face transformers' continuous batching, in this process.

The engine runs in a thread of its own. Each request is handed to it when it is due, and its output is streamed: the
first message of a request says when the engine began and when its first token came, the last one when it ended. All of
these instants are the engine's own stamps on `time.perf_counter`, the clock of the recording, so a late reader of the
stream changes none of them. `first_scheduled` is the instant at which a request stopped waiting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ground.errors import UserError
from ground.garbage import collected_before
from sim.results.recorder import StepRecorder
from traces.table import Trace
from validate.prompts import prompt_of
from validate.recording import Lateness, Recording, request_table
from validate.replay.arrivals import Arrivals

_PATIENCE = 0.5  # seconds of silence after which the engine's thread is looked after
_NO_END = -1  # an end-of-sequence token that is never drawn


class Output(Protocol):
    """What is used of transformers' `GenerationOutput`: one request as it stands at one step's end."""

    request_id: str
    generated_tokens: Sequence[int]
    timestamps: Sequence[float] | None  # seconds, one a token, on `time.perf_counter`
    lifespan: tuple[float, float]  # when it stopped waiting and when it ended, on the same clock
    error: str | None

    def is_finished(self) -> bool:
        """Whether nothing more comes of it; it may have failed."""


class Manager(Protocol):
    """What is used of transformers' `ContinuousBatchingManager`."""

    def start(self) -> None:
        """Start the engine's thread."""

    def stop(self, *, hard_stop: bool = False) -> None:
        """End it, when all requests have ended or at once, and wait for that."""

    def is_running(self) -> bool:
        """Whether the thread is alive."""

    def add_request(
        self,
        input_ids: list[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        eos_token_id: int | list[int] | None = None,
    ) -> str | None:
        """Hand a request over; None where it is refused."""

    def get_result(self, request_id: str | None = None, timeout: float | None = None) -> Output | None:
        """The next message of any request; None where none comes in time."""


@dataclass
class _Answer:
    """What came of one request; times on the recording's clock."""

    due: float | None = None
    first_scheduled: float | None = None
    first_token: float | None = None
    finish: float | None = None
    tokens: int = 0
    restarted: bool = False
    rejected: bool = False
    failure: str | None = None

    @property
    def status(self) -> str:
        if self.rejected:
            return "rejected"
        if self.failure:
            return "failed"
        return "unfinished" if self.finish is None else "finished"


def replay(
    trace: Trace,
    manager: Manager,
    *,
    vocabulary: int,
    seed: int = 0,
    max_model_len: int | None = None,
    on_finish: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Recording:
    """Serve the trace in real time; start and stop the manager.

    A request without an arrival is due `think_time` after its parent's last token, or failure. Outputs are greedy and
    as long as the trace says. A request over `max_model_len` tokens is rejected on arrival. `on_finish` is called once
    a request, whatever became of it. `clock` is the one that stamps the manager's outputs.

    Raises:
        UserError: the engine's thread ended before it had answered; says why.
    """
    client = _Client(trace, manager, vocabulary, seed, max_model_len, on_finish, clock)
    manager.start()
    try:
        client.warm_up()
        with collected_before():
            return client.replay()
    finally:
        manager.stop(hard_stop=True)  # only an interrupted replay has requests left, and nobody waits for them


class _Client:
    def __init__(
        self,
        trace: Trace,
        manager: Manager,
        vocabulary: int,
        seed: int,
        max_model_len: int | None,
        on_finish: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._rows = trace.requests.sort("request_id").to_dicts()
        self._manager = manager
        self._on_finish = on_finish
        self._clock = clock
        self._vocabulary = vocabulary
        self._answers = {row["request_id"]: _Answer() for row in self._rows}
        for row in self._rows:
            length = row["prompt_tokens"] + row["output_tokens"]
            self._answers[row["request_id"]].rejected = max_model_len is not None and length > max_model_len
        self._prompts = {
            row["request_id"]: prompt_of(row, vocabulary=vocabulary, seed=seed)
            for row in self._rows
            if not self._answers[row["request_id"]].rejected
        }
        self._arrivals = Arrivals(self._rows)
        self._open: set[int] = set()
        self._lateness: list[float] = []
        self._origin = 0.0

    def warm_up(self) -> None:
        """One request of the longest prompt, and up to two tokens, before the clock starts."""
        rows = [row for row in self._rows if row["request_id"] in self._prompts]
        if not rows:
            return
        longest = max(rows, key=lambda row: row["prompt_tokens"])
        tokens = longest["prompt_tokens"]
        # Tokens of no request of the trace, or a prefix cache would know them.
        prompt = prompt_of({"request_id": -1, "prompt_tokens": tokens}, vocabulary=self._vocabulary)
        self._add("warm-up", prompt, min(2, longest["output_tokens"]))
        while (output := self._next(_PATIENCE)) is None or not output.is_finished():
            pass
        if output.error is not None:
            raise UserError(f"transformers failed on a prompt of {tokens} tokens: {output.error}")

    def replay(self) -> Recording:
        arrivals = self._arrivals
        self._origin = self._clock()
        while True:
            for due, row in arrivals.release(self._now()):
                self._send(row, due)
            if not self._open and arrivals.next_due is None:
                return self._recording()
            wait = _PATIENCE if arrivals.next_due is None else arrivals.next_due - self._now()
            output = self._next(min(max(wait, 0.0), _PATIENCE))
            if output is not None:
                self._take(output)

    def _next(self, timeout: float) -> Output | None:
        output = self._manager.get_result(timeout=timeout)
        if output is None and not self._manager.is_running():
            # What it said last may have come between the two questions.
            output = self._manager.get_result(timeout=0)
            if output is None:
                reasons = Counter(answer.failure for answer in self._answers.values() if answer.failure)
                reason = reasons.most_common(1)[0][0] if reasons else "it did not say why"
                raise UserError(f"transformers' engine ended before it had answered every request: {reason}")
        return output

    def _send(self, row: dict[str, Any], due: float) -> None:
        request_id = row["request_id"]
        answer = self._answers[request_id]
        answer.due = due
        if answer.rejected:
            self._end(request_id, due)
            return
        self._open.add(request_id)
        if self._add(str(request_id), self._prompts.pop(request_id), row["output_tokens"]) is None:
            answer.failure = "refused by the engine"
            self._end(request_id, self._now())
        self._lateness.append(self._now() - due)

    def _add(self, name: str, prompt: list[int], tokens: int) -> str | None:
        return self._manager.add_request(
            prompt,
            request_id=name,
            max_new_tokens=tokens,
            streaming=True,
            record_timestamps=True,
            eos_token_id=_NO_END,
        )

    def _take(self, output: Output) -> None:
        request_id = int(output.request_id)
        answer = self._answers[request_id]
        stamps = output.timestamps or ()
        if answer.first_token is None and stamps:
            answer.first_scheduled = output.lifespan[0] - self._origin
            answer.first_token = stamps[0] - self._origin
        answer.tokens = len(output.generated_tokens)
        # A request that had to give up its blocks starts anew with its tokens as prompt, and without their stamps.
        answer.restarted = answer.restarted or len(stamps) < answer.tokens
        if not output.is_finished():
            return
        ended = (stamps[-1] if stamps else self._clock()) - self._origin
        if output.error is not None:
            answer.failure = output.error
        else:
            answer.finish = ended
        self._end(request_id, ended)

    def _end(self, request_id: int, time: float) -> None:
        self._open.discard(request_id)
        self._arrivals.answered(request_id, time)
        self._on_finish()

    def _now(self) -> float:
        return self._clock() - self._origin

    def _recording(self) -> Recording:
        answers = self._answers
        return Recording(
            requests=request_table(self._request_rows()),
            steps=StepRecorder().take_table(),
            lateness=Lateness.of(self._lateness),
            failures=Counter(answer.failure for answer in answers.values() if answer.failure is not None),
            engine={"restarted_requests": sum(answer.restarted for answer in answers.values())},
        )

    def _request_rows(self) -> Iterable[dict[str, Any]]:
        """One row a request: what was seen, and null for what the engine does not tell."""
        for row in self._rows:
            answer = self._answers[row["request_id"]]
            finished = answer.status == "finished"
            yield {
                "request_id": row["request_id"],
                "replica": 0 if answer.due is not None and not answer.rejected else -1,
                "arrival": row["arrival"] if answer.due is None else answer.due,
                "first_scheduled": answer.first_scheduled,
                "first_token": answer.first_token,
                "finish": answer.finish,
                "prompt_tokens": row["prompt_tokens"],
                "output_tokens": answer.tokens if finished else row["output_tokens"],
                "cached_tokens": None,
                "preemptions": None,
                "status": answer.status,
            }
