"""The client against a small server in this process: protocol, times, failures."""

import socket
from typing import Any

import polars as pl
import pytest

from ground.errors import UserError
from sim.results.tables import REQUESTS, STEPS
from traces.table import Trace
from validate.prompts import prompt_ids
from validate.replay.openai import Server, replay


def trace(**columns: list[Any]) -> Trace:
    n = len(columns["prompt_tokens"])
    columns = {"request_id": list(range(n)), "arrival": [0.0] * n, "output_tokens": [3] * n, **columns}
    requests = pl.DataFrame(columns)
    return Trace(requests=requests, format="test", source="test", rows_read=n)


def test_every_request_is_sent_once_as_the_trace_says(fake_server):
    source = trace(
        prompt_tokens=[5, 40, 33],
        output_tokens=[1, 2, 4],
        prefix_ids=[[], [7, 8], [7, 8]],
        prefix_block_tokens=[16, 16, 16],
    )
    finished = []
    recording = replay(source, Server(fake_server.url, vocabulary=500), seed=3, on_finish=lambda: finished.append(1))
    assert len(finished) == 3
    sent = {body["max_tokens"]: body for body in fake_server.received}
    assert len(fake_server.received) == 3
    for row in source.requests.to_dicts():
        body = sent[row["output_tokens"]]
        assert body["prompt"] == prompt_ids(
            row["request_id"], row["prompt_tokens"], row["prefix_ids"], 16, vocabulary=500, seed=3
        )
        assert body["min_tokens"] == body["max_tokens"] == row["output_tokens"]
        assert body["ignore_eos"] is True
        assert body["temperature"] == 0
        assert body["stream_options"] == {"include_usage": True}
        assert body["model"] == "tiny"
    assert sent[2]["prompt"][:32] == sent[4]["prompt"][:32]
    table = recording.requests
    assert dict(table.schema) == REQUESTS
    assert dict(recording.steps.schema) == STEPS
    assert recording.steps.is_empty()
    assert table["status"].to_list() == ["finished"] * 3
    assert table["output_tokens"].to_list() == [1, 2, 4]
    assert table["prompt_tokens"].to_list() == [5, 40, 33]
    assert table["tpot"].to_list()[0] is None
    assert recording.lateness.requests == 3
    assert 0 <= recording.lateness.mean <= recording.lateness.p99 <= recording.lateness.max


def test_times_follow_the_schedule_of_the_server(fake_server):
    fake_server.behave(first=0.02, gap=0.01)
    table = replay(trace(prompt_tokens=[4, 4], arrival=[0.0, 0.03]), Server(fake_server.url)).requests
    for row in table.to_dicts():
        assert row["arrival"] in (0.0, 0.03)
        assert row["ttft"] >= 0.02
        assert row["e2e"] >= row["ttft"] + 0.015  # two gaps, less the resolution of the server's sleep
        assert row["tpot"] == pytest.approx((row["finish"] - row["first_token"]) / 2)
        assert row["first_scheduled"] is None
        assert row["queue"] is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500}, "HTTP 500: request N is refused"),
        ({"status": 429}, "HTTP 429: request N is refused"),
        ({"disconnect_after": 2}, "disconnected in mid-stream"),
        ({"stall_after": 1}, "no complete answer within 0.3 s"),
        ({"error_after": 1}, "the server reported an error in mid-stream: out of memory"),
        ({"garbage_after": 1}, "the stream is not server-sent events of JSON (JSONDecodeError)"),
        ({"stop_after": 1}, "the stream ended before the last token"),
    ],
)
def test_a_failure_is_recorded_with_its_reason_and_the_rest_go_on(fake_server, fault, reason):
    fake_server.behave(when_asked=5, **fault)
    source = trace(prompt_tokens=[4, 4, 4], output_tokens=[3, 5, 3])
    recording = replay(source, Server(fake_server.url, timeout=0.3))
    assert recording.requests["status"].to_list() == ["finished", "failed", "finished"]
    assert dict(recording.failures) == {reason: 1}
    failed = recording.requests.row(1, named=True)
    assert failed["finish"] is None
    assert failed["e2e"] is None
    assert failed["output_tokens"] == 5


def test_a_server_without_usage_is_counted_by_chunks(fake_server):
    fake_server.behave(usage=False, tokens=2)
    assert replay(trace(prompt_tokens=[4]), Server(fake_server.url)).requests["output_tokens"].to_list() == [2]


def test_cached_tokens_come_from_usage(fake_server):
    fake_server.behave(cached=32)
    assert replay(trace(prompt_tokens=[40]), Server(fake_server.url)).requests["cached_tokens"].to_list() == [32]


def test_a_later_turn_waits_for_its_parent_and_its_think_time(fake_server):
    source = trace(
        prompt_tokens=[4, 8, 12],
        arrival=[0.0, None, None],
        parent=[None, 0, 1],
        think_time=[None, 0.02, None],
    )
    table = replay(source, Server(fake_server.url)).requests
    assert table["status"].to_list() == ["finished"] * 3
    assert table["arrival"][1] == pytest.approx(table["finish"][0] + 0.02)
    assert table["arrival"][2] == pytest.approx(table["finish"][1])
    assert [len(body["prompt"]) for body in fake_server.received] == [4, 8, 12]


def test_the_user_goes_on_after_a_failed_turn(fake_server):
    fake_server.behave(when_asked=5, status=500)
    source = trace(
        prompt_tokens=[4, 4, 4],
        output_tokens=[5, 3, 3],
        arrival=[0.0, None, None],
        parent=[None, 0, 1],
        think_time=[None, 0.0, 0.01],
    )
    finished = []
    recording = replay(source, Server(fake_server.url), on_finish=lambda: finished.append(1))
    assert recording.requests["status"].to_list() == ["failed", "finished", "finished"]
    assert len(finished) == len(fake_server.received) == 3


def test_the_model_is_asked_for_unless_named(fake_server):
    fake_server.models = ()
    with pytest.raises(UserError, match="lists no model"):
        replay(trace(prompt_tokens=[4]), Server(fake_server.url))
    replay(trace(prompt_tokens=[4]), Server(fake_server.url + "/v1/", model="mine"))
    assert fake_server.received[0]["model"] == "mine"


def test_the_key_is_read_from_the_named_variable(fake_server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "abc")
    replay(trace(prompt_tokens=[4]), Server(fake_server.url, api_key_variable="SOME_KEY"))
    assert fake_server.keys == ["Bearer abc"]
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match="SOME_KEY: not set"):
        replay(trace(prompt_tokens=[4]), Server(fake_server.url, api_key_variable="SOME_KEY"))


def test_nobody_listening_is_one_line():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot be reached"):
            replay(trace(prompt_tokens=[4]), Server(url))


def test_a_run_in_which_nothing_finished_is_an_error(fake_server):
    fake_server.behave(status=500)
    with pytest.raises(UserError, match="none of 2 requests finished; 2 said: HTTP 500"):
        replay(trace(prompt_tokens=[4, 4]), Server(fake_server.url))


def test_without_aiohttp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"pip install 'simctl\[client\]'"):
        replay(trace(prompt_tokens=[4]), Server("http://127.0.0.1:1"))
