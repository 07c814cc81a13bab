"""Replay on transformers: on an engine of the same protocol, in a time of its own."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_traces import trace_of

from ground.errors import UserError
from sim.results.tables import REQUESTS
from validate.prompts import prompt_of
from validate.replay.transformers import replay

VOCABULARY = 1000
START = 1000.0  # no clock starts at 0


@dataclass
class Message:
    """What the engine says of one request at one step's end."""

    request_id: str
    generated_tokens: list[int]
    timestamps: list[float]
    lifespan: tuple[float, float]
    error: str | None = None
    finished: bool = False

    def is_finished(self):
        return self.finished


@dataclass
class Inside:
    """A request of the engine below."""

    name: str
    prompt: list[int]
    wanted: int
    began: float | None = None
    tokens: int = 0
    stamps: list[float] = field(default_factory=list)


@dataclass
class TimedEngine:
    """Answers as transformers does, in virtual time: whoever waits for a result lets it run.

    A step takes `step` seconds and gives every request inside a token; who comes meanwhile waits for its end.
    """

    step: float = 0.01
    failing: dict[str, str] = field(default_factory=dict)  # name → what it says instead of a second token
    restarting: set[str] = field(default_factory=set)  # those that lose their stamps after a second token
    refusing: set[str] = field(default_factory=set)
    dies_at: float | None = None
    now: float = START
    running: bool = False
    stopped: bool = False
    handed: dict[str, float] = field(default_factory=dict)
    given: dict[str, dict] = field(default_factory=dict)
    truth: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # began, first token, last token

    def __post_init__(self):
        self._waiting: list[Inside] = []
        self._inside: list[Inside] = []
        self._messages: deque[Message] = deque()
        self._boundary: float | None = None  # where the present step ends
        self._first: dict[str, float] = {}

    def clock(self):
        return self.now

    def start(self):
        self.running = True

    def stop(self, *, hard_stop=False):
        self.running, self.stopped = False, hard_stop

    def is_running(self):
        return self.running

    def add_request(self, input_ids, request_id=None, max_new_tokens=None, **options):
        assert request_id not in self.handed
        if request_id in self.refusing:
            return None
        self.handed[request_id] = self.now
        self.given[request_id] = {"prompt": input_ids, "tokens": max_new_tokens, **options}
        self._waiting.append(Inside(request_id, list(input_ids), max_new_tokens))
        if self._boundary is None:
            self._begin()
        return request_id

    def get_result(self, request_id=None, timeout=None):
        if self._messages:
            return self._messages.popleft()
        until = self.now + timeout
        if self.dies_at is not None and self.dies_at <= until:
            self.running = False
            return None
        while not self._messages and self._boundary is not None and self._boundary <= until:
            self.now = self._boundary
            self._end()
        if self._messages:
            return self._messages.popleft()
        self.now = until
        return None

    def _begin(self):
        for request in self._waiting:
            request.began = self.now
        self._inside += self._waiting
        self._waiting = []
        self._boundary = self.now + self.step if self._inside else None

    def _end(self):
        for request in list(self._inside):
            request.tokens += 1
            request.stamps.append(self.now)
            self._first.setdefault(request.name, self.now)
            error = self.failing.get(request.name) if request.tokens == 2 else None
            if request.tokens == 2 and request.name in self.restarting:
                request.stamps = []
            done = error is not None or request.tokens == request.wanted
            if done:
                self._inside.remove(request)
                self.truth[request.name] = (request.began, self._first[request.name], self.now)
            life = (request.began, self.now if done else -1)
            tokens = list(range(request.tokens))
            self._messages.append(Message(request.name, tokens, list(request.stamps), life, error, done))
        self._begin()


def serve(engine, rows, **options):
    recording = replay(trace_of(rows), engine, vocabulary=VOCABULARY, clock=engine.clock, **options)
    assert engine.stopped
    return recording, recording.requests.sort("request_id").to_dicts()


requests = st.lists(
    st.fixed_dictionaries(
        {
            "arrival": st.integers(0, 400).map(lambda n: n / 128),
            "prompt_tokens": st.integers(1, 50),
            "output_tokens": st.integers(1, 20),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(requests, st.sampled_from([0.004, 0.03, 0.7]))
def test_what_the_engine_stamped_is_recorded_on_one_clock(rows, step):
    engine, ended = TimedEngine(step), []
    recording, table = serve(engine, rows, on_finish=lambda: ended.append(1))
    origin = engine.truth["warm-up"][2]  # the clock starts when the warm-up has ended
    assert len(table) == len(ended) == len(rows)
    for row, given_row in zip(table, rows, strict=True):
        began, first, last = engine.truth[str(row["request_id"])]
        assert row["status"] == "finished" and row["replica"] == 0
        assert row["arrival"] == given_row["arrival"]
        assert row["output_tokens"] == given_row["output_tokens"]
        assert row["first_scheduled"] == pytest.approx(began - origin)
        assert row["first_token"] == pytest.approx(first - origin)
        assert row["finish"] == pytest.approx(last - origin)
        assert row["arrival"] <= row["first_scheduled"] + 1e-9 < row["first_token"]
        assert row["ttft"] == pytest.approx(row["first_token"] - row["arrival"])
        # In this time nothing else delays a hand-over.
        assert engine.handed[str(row["request_id"])] - origin == pytest.approx(row["arrival"])
        assert row["cached_tokens"] is None and row["preemptions"] is None
    assert {name: recording.requests.schema[name] for name in REQUESTS} == REQUESTS
    assert recording.steps.is_empty()
    assert recording.lateness.max == pytest.approx(0.0, abs=1e-9)
    assert recording.engine == {"restarted_requests": 0}


@settings(deadline=None, max_examples=40)
@given(requests)
def test_lengths_are_pinned_and_prompts_are_the_traces(rows):
    engine = TimedEngine()
    serve(engine, rows, seed=7)
    for row in trace_of(rows).requests.to_dicts():
        given_ = engine.given[str(row["request_id"])]
        assert given_["prompt"] == prompt_of(row, vocabulary=VOCABULARY, seed=7)
        assert given_["tokens"] == row["output_tokens"]
        assert given_["eos_token_id"] == -1  # a token that is never drawn
        assert given_["streaming"] and given_["record_timestamps"]
    warm_up = engine.given["warm-up"]["prompt"]
    longest = max(rows, key=lambda row: row["prompt_tokens"])
    assert len(warm_up) == longest["prompt_tokens"]
    assert engine.given["warm-up"]["tokens"] == min(2, longest["output_tokens"])
    if len(warm_up) > 5:
        assert all(given_["prompt"] != warm_up for name, given_ in engine.given.items() if name != "warm-up")


def test_a_turn_comes_its_think_time_after_its_parents_last_token():
    engine = TimedEngine(step=0.5)
    _, (first, second, third) = serve(
        engine,
        [
            {"arrival": 0.0, "output_tokens": 4},
            {"arrival": None, "parent": 0, "think_time": 3.25},
            {"arrival": None, "parent": 1},
        ],
    )
    assert first["finish"] == pytest.approx(2.0)
    assert second["arrival"] == pytest.approx(5.25)
    assert third["arrival"] == pytest.approx(second["finish"])
    assert third["status"] == "finished"


def test_too_long_a_request_is_rejected_on_arrival_and_its_turn_follows():
    engine = TimedEngine()
    rows = [{"arrival": 1.0, "prompt_tokens": 30}, {"arrival": None, "parent": 0, "think_time": 0.5}]
    _, (long, turn) = serve(engine, rows, max_model_len=32)
    assert (long["status"], long["replica"], long["first_token"]) == ("rejected", -1, None)
    assert "0" not in engine.handed
    assert (turn["status"], turn["arrival"]) == ("finished", pytest.approx(1.5))


def test_nothing_but_rejected_requests_needs_no_warm_up():
    engine = TimedEngine()
    _, (only,) = serve(engine, [{"arrival": 0.0, "prompt_tokens": 30}], max_model_len=32)
    assert only["status"] == "rejected" and not engine.handed


def test_failures_and_refusals_are_counted_and_the_rest_finishes():
    engine = TimedEngine(failing={"1": "out of memory"}, refusing={"2"})
    recording, table = serve(engine, [{"arrival": 0.0}, {"arrival": 0.0}, {"arrival": 0.1}, {"arrival": 0.2}])
    assert [row["status"] for row in table] == ["finished", "failed", "failed", "finished"]
    assert recording.failures == {"out of memory": 1, "refused by the engine": 1}
    assert table[1]["finish"] is None and table[1]["output_tokens"] == 3


def test_a_request_that_starts_anew_keeps_its_first_token():
    engine = TimedEngine(step=1.0, restarting={"1"})
    recording, (_, anew) = serve(engine, [{"arrival": 0.0}, {"arrival": 0.5, "output_tokens": 5}])
    assert recording.engine == {"restarted_requests": 1}
    assert (anew["first_scheduled"], anew["first_token"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert anew["finish"] == pytest.approx(6.0)
    assert anew["output_tokens"] == 5


def test_an_engine_that_dies_ends_the_replay_in_one_line():
    engine = TimedEngine(failing={"0": "the cache is gone"}, dies_at=START + 3.0)
    with pytest.raises(UserError, match="ended before it had answered every request: the cache is gone") as caught:
        serve(engine, [{"arrival": 0.0}, {"arrival": 5.0}])
    assert "\n" not in caught.value.format_message()
    assert engine.stopped


def test_an_engine_that_fails_its_warm_up_says_so():
    engine = TimedEngine(failing={"warm-up": "no kernel"})
    with pytest.raises(UserError, match="failed on a prompt of 8 tokens: no kernel"):
        serve(engine, [{"arrival": 0.0}])
    assert engine.stopped
