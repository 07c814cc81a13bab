"""KV blocks kept for idle sessions: whose, until when, given up in which order, and exact whether leapt or stepped."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from session_workloads import BLOCK, conversations, retaining

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.engine.session_retention import SessionRetentionSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.results.folder import read_run, write_run
from sim.results.tables import SESSIONS
from sim.study.scenario import Scenario
from sim.study.simulate import simulate


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, law: bool = True, **fleet: object) -> FleetRun:
    return equal_replicas(trace, config, LinearStepTimes(has_law=law), seed=3, leap=leap, **fleet).run()  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn) -> tuple[pl.DataFrame, EngineConfig]:
    return draw(conversations()), draw(retaining(draw(configs(block_size=BLOCK))))


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 2), st.booleans())
def test_leap_equals_step(case: tuple[pl.DataFrame, EngineConfig], replicas: int, law: bool) -> None:
    trace, config = case
    leapt, stepped = (run(trace, config, leap=leap, law=law, replicas=replicas) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert leapt.sessions is not None and stepped.sessions is not None
    assert_frame_equal(leapt.sessions, stepped.sessions, check_exact=True)
    assert_frame_equal(evictions(leapt), evictions(stepped), check_exact=True)
    # Where a row of the one ends, a row of the other does, with as many blocks held.
    held = dict(zip(stepped.steps["end"], stepped.steps["kv_blocks"], strict=True))
    if replicas == 1:
        assert [held[end] for end in leapt.steps["end"].unique()] == [
            blocks for _, blocks in sorted(dict(zip(leapt.steps["end"], leapt.steps["kv_blocks"], strict=True)).items())
        ]


def evictions(result: FleetRun) -> pl.DataFrame:
    return result.events.filter(pl.col("kind") == "session_evicted")


@settings(max_examples=75, deadline=None)
@given(cases(), st.booleans())
def test_the_sessions_table_adds_up(case: tuple[pl.DataFrame, EngineConfig], leap: bool) -> None:
    """Against an account of the same run written from outside: who had blocks when."""
    trace, config = case
    watched = Watched(trace, config, leap)
    result = watched.result
    sessions, requests = result.sessions, result.requests.with_columns(session=trace["session"])
    assert sessions is not None
    assert sessions.schema == pl.Schema(SESSIONS)
    of_sessions = requests.filter(pl.col("session").is_not_null())
    assert sessions["turns"].sum() == len(of_sessions)
    gone = evictions(result)
    assert sessions["evictions"].sum() == len(gone)
    for row in sessions.iter_rows(named=True):
        own = of_sessions.filter(pl.col("session") == row["session"])
        assert (row["first"], row["last"]) == (own["first_scheduled"].min(), own["finish"].max())
        assert row["turns"] == len(own)
        # A request that was never preempted ends with the blocks of all tokens but the last one.
        longest = own.select((pl.col("prompt_tokens") + pl.col("output_tokens") - 2) // BLOCK + 1).max().item()
        assert row["peak_blocks"] <= longest
        if not own["preemptions"].sum():
            assert row["peak_blocks"] == longest
        assert row["evictions"] == len(gone.filter(pl.col("detail").str.ends_with(f": {row['session']}")))
        assert row["idle_block_seconds"] == pytest.approx(watched.block_seconds.get(row["session"], 0.0), abs=1e-9)
    missed = result.events.filter(pl.col("kind") == "missed")["amount"].sum()
    unnamed = sum(request.missed_tokens for request in watched.seen if request.session is None)
    assert sessions["missed_tokens"].sum() + unnamed == missed


class Watched:
    """A run whose retention tells of every keeping and giving back; block-seconds are summed from that alone."""

    def __init__(self, trace: pl.DataFrame, config: EngineConfig, leap: bool) -> None:
        fleet = equal_replicas(trace, config, LinearStepTimes(), leap=leap)
        engine = fleet.service.members[0].engine
        retention = engine.retention
        assert retention is not None
        self.seen: set[Request] = set()
        self.block_seconds: dict[str, float] = {}
        kept: dict[str, tuple[int, float]] = {}
        keep, give_back, add = retention.keep, retention._give_back, engine.scheduler.add

        def keep_and_tell(request: Request) -> None:
            assert request.session is not None and request.finish is not None
            blocks = len(request.holding.block_table())
            keep(request)
            if request.session in retention.idle:  # not given up at once
                kept[request.session] = blocks, request.finish

        def give_back_and_tell(session: str, time: float) -> int:
            if session in kept:
                blocks, since = kept.pop(session)
                self.block_seconds[session] = self.block_seconds.get(session, 0.0) + blocks * (time - since)
            return give_back(session, time)

        def add_and_tell(request: Request) -> bool:
            self.seen.add(request)
            return add(request)  # type: ignore[no-any-return]

        retention.keep, retention._give_back = keep_and_tell, give_back_and_tell  # type: ignore[method-assign]
        engine.scheduler.add = add_and_tell
        self.result = fleet.run()
        assert not kept
        assert engine.scheduler.pool.free == engine.scheduler.pool.total, "nothing is leaked"


@settings(max_examples=75, deadline=None)
@given(cases())
def test_nobody_who_runs_is_preempted_while_an_idle_session_has_blocks(case: tuple[pl.DataFrame, EngineConfig]) -> None:
    trace, config = case
    fleet = equal_replicas(trace, config, LinearStepTimes())
    scheduler: Scheduler = fleet.service.members[0].engine.scheduler
    retention, preempt, admit = scheduler.retention, scheduler._preempt, scheduler._admit
    assert retention is not None

    def preempt_and_check(*arguments: object) -> None:
        assert not retention.idle
        preempt(*arguments)  # type: ignore[arg-type]

    def admit_and_check(plan: object, now: float) -> None:
        admit(plan, now)  # type: ignore[arg-type]
        refused_for_blocks = (
            scheduler.waiting_count and plan.budget > 0 and scheduler.running_count < config.max_num_seqs  # type: ignore[attr-defined]
        )
        assert not (refused_for_blocks and retention.idle)

    scheduler._preempt, scheduler._admit = preempt_and_check, admit_and_check  # type: ignore[method-assign]
    fleet.run()


def talk(*turns: tuple[float, str | None, int, int], priorities: Sequence[int] | None = None) -> pl.DataFrame:
    """Each (arrival, session, prompt tokens, output tokens); a session's turns share their start, token by token."""
    return pl.DataFrame(
        {
            "request_id": range(len(turns)),
            "arrival": [turn[0] for turn in turns],
            "session": [turn[1] for turn in turns],
            "prompt_tokens": [turn[2] for turn in turns],
            "output_tokens": [turn[3] for turn in turns],
            "prefix_ids": [
                [1000 * (ord(session or "~") * 100 + (0 if session else place)) + i for i in range(prompt + output)]
                for place, (_, session, prompt, output) in enumerate(turns)
            ],
            "prefix_block_tokens": [1] * len(turns),
            "priority": priorities or [0] * len(turns),
        },
        schema_overrides={"session": pl.String},
    )


def engine(blocks: int, **retention: object) -> EngineConfig:
    kept = SessionRetentionSettings.model_validate(retention)
    return EngineConfig(kv_blocks=blocks, block_size=1, session_retention=kept)


def reasons(result: FleetRun) -> list[str]:
    return evictions(result)["detail"].to_list()


def test_a_session_finds_its_history_whatever_came_in_between() -> None:
    """Between the turns of `a` so much is computed that its blocks would be evicted: unless they are held."""
    between = [(1.0 + 0.1 * i, None, 20, 1) for i in range(10)]
    trace = talk((0.0, "a", 30, 10), *between, (9.0, "a", 50, 2))
    held = run(trace, engine(100))
    assert held.requests["cached_tokens"][-1] == 39, "all but the last token of the answer, which was never computed"
    assert reasons(held) == []
    shared = run(trace, EngineConfig(kv_blocks=100, block_size=1))
    assert shared.requests["cached_tokens"][-1] == 0


def test_time_to_live_is_an_instant() -> None:
    trace = talk((0.0, "a", 30, 10), (5.0, "b", 10, 1), (7.0, "b", 12, 1))
    result = run(trace, engine(100, ttl=1.5))
    first, second = result.requests["finish"][0], result.requests["finish"][1]
    gone = evictions(result)
    assert gone["time"].to_list() == [first + 1.5, second + 1.5]
    assert gone["amount"].to_list() == [39, 10]
    assert gone["detail"].to_list() == ["ttl: a", "ttl: b"]
    assert result.sessions is not None
    table = {row["session"]: row for row in result.sessions.iter_rows(named=True)}
    assert table["a"]["idle_block_seconds"] == pytest.approx(39 * 1.5)
    assert table["b"]["idle_block_seconds"] == pytest.approx(10 * 1.5), "its last answer ends the run"


def test_a_session_that_never_ends_keeps_its_blocks() -> None:
    result = run(talk((0.0, "a", 30, 10), (1000.0, None, 1, 1)), engine(100))
    assert result.steps["kv_blocks"][-1] == 39
    assert result.sessions is not None
    idle = result.requests["finish"][1] - result.requests["finish"][0]
    assert result.sessions["idle_block_seconds"].item() == pytest.approx(39 * idle)


def test_the_least_recently_used_goes_first() -> None:
    trace = talk((0.0, "a", 20, 1), (1.0, "b", 20, 1), (2.0, "c", 20, 1), (3.0, "a", 22, 1), (4.0, None, 50, 1))
    assert reasons(run(trace, engine(100))) == ["pressure: b"]
    assert reasons(run(trace, engine(80))) == ["pressure: b", "pressure: c"]


def test_the_least_urgent_goes_first() -> None:
    trace = talk(
        (0.0, "a", 20, 1), (1.0, "b", 20, 1), (2.0, "c", 20, 1), (4.0, None, 70, 1), priorities=[1, 2, 0, 0]
    )  # fmt: skip
    assert reasons(run(trace, engine(100, policy="priority"))) == ["pressure: c", "pressure: a"]
    assert reasons(run(trace, engine(100, policy="lru"))) == ["pressure: a", "pressure: b"]


def test_no_more_than_so_many_are_idle() -> None:
    trace = talk((0.0, "a", 20, 1), (1.0, "b", 20, 1), (2.0, "c", 20, 1), (3.0, "c", 30, 1))
    assert reasons(run(trace, engine(100, max_sessions=2))) == ["max_sessions: a"]
    assert reasons(run(trace, engine(100, max_sessions=1))) == ["max_sessions: a", "max_sessions: b"]


def test_the_session_that_comes_back_is_the_last_to_give_way() -> None:
    """Its blocks were kept the longest; the others are given up before them."""
    trace = talk((0.0, "a", 40, 1), (1.0, "b", 30, 1), (2.0, "a", 80, 1))
    result = run(trace, engine(100))
    assert reasons(result) == ["pressure: b"]
    assert result.requests["cached_tokens"].to_list() == [0, 0, 40]


def test_a_run_of_a_scenario_has_its_sessions(tmp_path: Path) -> None:
    """Conversations in a pool that holds the history of few."""
    scenario = {
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "trace": {
            "synth": {
                "requests": 60,
                "arrivals": {"process": "poisson", "rate": 5.0},
                "lengths": {
                    "prompt": {"distribution": "uniform", "low": 300, "high": 600},
                    "output": {"distribution": "uniform", "low": 50, "high": 80},
                },
                "sessions": {
                    "turns": {"distribution": "uniform", "low": 2, "high": 5},
                    "think_time": {"distribution": "exponential", "mean": 4.0},
                },
            }
        },
        "engine": {"kv_blocks": 600, "session_retention": {"policy": "lru", "ttl": 3.0}},
    }
    run = simulate(check_spec(Scenario, scenario, "made"))
    assert run.sessions is not None
    assert run.sessions["turns"].sum() == len(run.requests)
    assert run.sessions["evictions"].sum() == len(run.events.filter(pl.col("kind") == "session_evicted")) > 0
    causes = {detail.split(":")[0] for detail in run.events["detail"].drop_nulls()}
    assert causes == {"ttl", "pressure"}
    write_run(tmp_path / "run", run)
    again = read_run(tmp_path / "run")
    assert again.sessions is not None
    assert_frame_equal(again.sessions, run.sessions)
    assert check_spec(Scenario, again.scenario, "resolved").engine.session_retention is not None


@pytest.mark.parametrize(
    ("engine_settings", "message"),
    [
        ({"enable_prefix_caching": False}, "session_retention is given and enable_prefix_caching is false"),
        ({"data_parallel": 2}, "session_retention is given and data_parallel is 2; expected 1"),
        ({"kv_cache": False}, "session_retention is given and enable_prefix_caching is false"),
        ({"session_retention": {"ttl": 0}}, "session_retention.ttl: Input should be greater than 0, found 0"),
        ({"session_retention": {"policy": "fifo"}}, "session_retention.policy: .* found 'fifo'"),
    ],
)
def test_what_makes_no_sense_is_refused(engine_settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(EngineConfig, {"kv_blocks": 10, "session_retention": {}} | engine_settings, "made")
