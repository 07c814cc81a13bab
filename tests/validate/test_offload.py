"""Tiers behind the prefix cache of the real engine: what comes back is what went, byte by byte and token by token."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from offload_workloads import NothingTakesNoTime, offloaded, offloading
from polars.testing import assert_frame_equal
from session_workloads import conversations as sessions

from calibrate.block_file import BlockFile
from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape, load_model
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.offload.host_link import HostLinkSettings
from sim.engine.offload.settings import DiskSettings, KvOffloadSettings, PrefetchSettings
from sim.results.folder import read_run
from sim.results.tables import REQUESTS
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate
from traces.table import COLUMNS, Trace
from validate.engine.block_moves import BlockMoves, Copied
from validate.engine.clock import WallClock
from validate.engine.engine import Engine
from validate.measure import Machine, measure_reference, read_measurement
from validate.prompts import prompt_of

VOCABULARY = 97
TINY = ModelShape("tiny", 16, 2, 2, 1, 8, 32, VOCABULARY, dtype_bytes=8)
BLOCK = 4
POOL = 22
TIMES = NothingTakesNoTime(has_law=False)


class CheckedSwap(BlockSwap):
    """Knows what every place in host memory must hold, and looks at the device's blocks after a fetch."""

    def __init__(self, decoder: Decoder, host_blocks: int) -> None:
        super().__init__(decoder, host_blocks)
        self.must_hold: dict[int, bytes] = {}
        self.checked = 0
        self.decoder = decoder

    def on_device(self, block: int) -> bytes:
        return b"".join(cache.view(POOL + 1, -1)[block].numpy().tobytes() for cache in self.decoder.caches)

    def swap_out(self, device_blocks, host_blocks):
        self.must_hold |= {host: self.on_device(block) for block, host in zip(device_blocks, host_blocks, strict=True)}
        return super().swap_out(device_blocks, host_blocks)

    def swap_in(self, host_blocks, device_blocks):
        swap = super().swap_in(host_blocks, device_blocks)
        for host, block in zip(host_blocks, device_blocks, strict=True):
            assert self.on_device(block) == self.must_hold[host]
            self.checked += 1
        return swap


class CheckedFile(BlockFile):
    """The same of every place on disk."""

    def __init__(self, blocks: int, swap: CheckedSwap) -> None:
        super().__init__(blocks, swap.block_bytes)
        self.must_hold: dict[int, bytes] = {}
        self.swap = swap
        self.reads = 0

    def write(self, memory, host, disk):
        super().write(memory, host, disk)
        self.must_hold |= {place: self.swap.must_hold[at] for place, at in zip(disk, host, strict=True)}

    def read(self, memory, host, disk):
        super().read(memory, host, disk)
        self.swap.must_hold |= {at: self.must_hold[place] for place, at in zip(disk, host, strict=True)}
        self.reads += len(disk)


def conversations(turns: int, sessions: int = 4, gap: float = 0.0) -> Trace:
    """Sessions whose prompts grow; the ids go on over prompts alone, as nobody knows what will be answered."""
    rows = []
    for turn in range(turns):
        for session in range(sessions):
            prompt = 14 + 17 * turn + 3 * session
            rows.append(
                {
                    "arrival": None if turn else 0.0,
                    "parent": len(rows) - sessions if turn else None,
                    "think_time": gap if turn else None,
                    "session": f"s{session}",
                    "prompt_tokens": prompt,
                    "output_tokens": 5 + session,
                    "prefix_ids": [1000 * (session + 1) + i for i in range(prompt // BLOCK)],
                    "prefix_block_tokens": BLOCK,
                }
            )
    columns = {"request_id": list(range(len(rows)))} | {name: [row[name] for row in rows] for name in rows[0]}
    requests = pl.DataFrame(columns, schema={name: COLUMNS[name][0] for name in columns})
    return Trace(requests=requests, format="test", source="test", rows_read=len(rows))


def without_cache(trace: Trace) -> dict[int, list[int]]:
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=POOL, block_size=BLOCK)
    outputs = {}
    for row in trace.requests.to_dicts():
        sequence = prompt_of(row, vocabulary=VOCABULARY)
        for _ in range(row["output_tokens"]):
            sequence += decoder.step([SequenceInput(sequence, 0, list(range(POOL)))])
        outputs[row["request_id"]] = sequence[row["prompt_tokens"] :]
    return outputs


TRACE = conversations(4)
EXPECTED: dict[int, list[int]] = {}


def expected() -> dict[int, list[int]]:
    if not EXPECTED:
        EXPECTED.update(without_cache(TRACE))
    return EXPECTED


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("write", ["on_eviction", "on_release", "on_idle", "on_preemption"])
@pytest.mark.parametrize("disk", [None, DiskSettings(blocks=200, read_bandwidth=1e9, write_bandwidth=1e9)])
def test_what_comes_back_is_what_went(ahead, write, disk):
    torch.set_num_threads(1)
    tiers = KvOffloadSettings(
        host_blocks=POOL if disk is not None else 200,
        disk=disk,
        write=write,
        idle_after=0.0005 if write == "on_idle" else None,
        eviction="arc" if ahead else "lru",
        prefetch=PrefetchSettings(least_seen=1) if write == "on_idle" else None,
    )
    config = EngineConfig(
        kv_blocks=POOL,
        block_size=BLOCK,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        async_scheduling=ahead,
        kv_offload=tiers,
        swap_blocks=3 if ahead else 0,
    )
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=POOL, block_size=BLOCK)
    swap = CheckedSwap(decoder, config.swap_blocks + tiers.host_blocks)
    file = None if disk is None else CheckedFile(disk.blocks, swap)
    clock = WallClock()
    moves = BlockMoves(swap, file, clock)
    engine = Engine(config, decoder, vocabulary=VOCABULARY, swap=swap, moves=moves, clock=clock, warm_up=False)
    trace = TRACE if write != "on_idle" else conversations(4, gap=0.004)
    recording = engine.replay(trace)
    moves.close()
    assert engine.outputs == expected()
    assert swap.checked > 0
    fetched = recording.events.filter(pl.col("kind") == "kv_fetch")
    if not config.swap_blocks:
        assert fetched["amount"].sum() == swap.checked
    assert recording.engine["kv_fetch_bytes"] == fetched["amount"].sum() * swap.block_bytes
    assert 0 < recording.engine["kv_fetch_copy_seconds"] <= fetched["seconds"].sum()
    assert (fetched["seconds"] > 0).all()
    assert recording.requests["status"].to_list() == ["finished"] * len(trace.requests)
    if file is not None and write == "on_release":
        assert file.reads > 0
    waited = recording.events.filter(pl.col("kind") == "copy")
    assert (waited["seconds"] > 0).all()
    assert write != "on_eviction" or {"out"} <= set(waited["detail"])


class Fake:
    """Clock, decoder and copies in one: time passes only by waiting, by steps and by copies, one after the other in
    each direction."""

    ahead = False
    graph = False
    seconds = None  # of copies: nobody measures them

    def __init__(self, link: HostLinkSettings) -> None:
        self.time = 0.0
        self.link = link
        self.free_at = Counter()  # by lane
        self.waits = 0.0  # seconds of copies before the next step
        self.asked_for, self.under_way, self.wakes = [], [], []

    def start(self, moves=None):
        for move in moves or ():
            now = self.time
            if move.disk.host:
                now = self.lane("disk read", now, self.link.read(len(move.disk.host)))
            self.under_way.append((self.copies_in(now, len(move.blocks.host)), move))

    def copies_in(self, ready, blocks):
        # What comes from disk takes its turn when it has come: later ones that are ready sooner do not wait for it.
        return self.lane("into", ready, TIMES.swap(0, blocks))

    def lane(self, name, ready, seconds):
        self.free_at[name] = max(ready, self.free_at[name]) + seconds
        return self.free_at[name]

    def now(self):
        return self.time

    def wait_until(self, when):
        assert when >= self.time
        self.time = when

    def swap_out(self, device, host):
        self.waits = self.lane("out", self.time + self.waits, TIMES.swap(len(host), 0)) - self.time
        return self

    def swap_in(self, host, device):
        self.waits = self.lane("into", self.time + self.waits, TIMES.swap(0, len(host))) - self.time
        return self

    def before_compute(self):
        pass

    def wait(self):
        self.time += self.waits
        self.waits = 0.0

    def launch(self, batch):
        self.batch = batch
        return self

    def tokens(self):
        self.wait()
        self.time += TIMES.step([(len(one.tokens), one.start) for one in self.batch], 0, 0)
        return [0] * len(self.batch)

    def begin(self, move):
        if move.kind == "fetch":
            self.asked_for.append(move)
        elif move.kind == "write":
            self.under_way.append((self.lane("out", self.time, TIMES.swap(len(move.blocks.host), 0)), move))
        else:
            seconds = self.link.write(len(move.disk.host))
            self.under_way.append((self.lane("disk write", self.time, seconds), move))

    def wake(self, time):
        self.wakes.append(time)

    @property
    def busy(self):
        return bool(self.asked_for or self.under_way)

    def asked(self):
        asked, self.asked_for = self.asked_for, []
        return asked

    def ended(self):
        done = sorted((end, number) for number, (end, _) in enumerate(self.under_way) if end <= self.time)
        moves = [self.under_way[number][1] for _, number in done]
        self.under_way = [one for one in self.under_way if one[0] > self.time]
        return [Copied(move, 0.0, 0.0, 0.0, max(len(move.blocks.host), len(move.disk.host))) for move in moves]

    def rest(self, until):
        times = [end for end, _ in self.under_way] + [time for time in self.wakes if time > self.time]
        self.time = max(self.time, min([*times, *([] if until is None else [until])]))


@st.composite
def tiers(draw):
    write = draw(st.sampled_from(["on_eviction", "on_release", "on_idle", "on_preemption"]))
    return KvOffloadSettings(
        host_blocks=draw(st.sampled_from([6, 40, 1000])),
        write=write,
        idle_after=0.0301 if write == "on_idle" else None,
        eviction=draw(st.sampled_from(["lru", "arc"])),
        fetch=draw(st.sampled_from(["always", "cheaper"])),
        prefetch=draw(st.none() | st.just(PrefetchSettings(least_seen=1))),
    )


@settings(max_examples=25, deadline=None)
@given(sessions(closed_loop=False), offloading(), tiers())
def test_the_same_step_and_copy_times_give_the_simulators_tables(requests, config, offload):
    config = config.model_copy(update={"kv_offload": offload, "async_scheduling": False})
    predicted = offloaded(requests, config, leap=False, law=False).run()
    link = HostLinkSettings(1, None)
    fake = Fake(link)
    engine = Engine(
        config,
        fake,
        vocabulary=VOCABULARY,
        swap=fake,
        moves=fake,
        predicted=TIMES,
        host_link=link,
        clock=fake,
        warm_up=False,
    )
    trace = Trace(requests=requests, format="test", source="test", rows_read=len(requests))
    measured = engine.replay(trace)
    columns = [name for name in REQUESTS if name != "status"]
    assert_frame_equal(measured.requests.select(columns), predicted.requests.select(columns), check_exact=False)
    assert_frame_equal(measured.steps, predicted.steps, check_exact=False)
    assert moved(measured.events) == moved(predicted.events.filter(pl.col("time") < measured.steps["end"].max()))


def moved(events: pl.DataFrame) -> list[tuple[int, int]]:
    """Fetches: request and blocks."""
    return events.filter(pl.col("kind") == "kv_fetch").select("request_id", "amount").sort("request_id").rows()


def test_a_measured_run_says_what_its_tiers_did(tmp_path: Path) -> None:
    """Through the scenario, as `simctl validate replay` does it; the simulator makes the same metrics of it."""
    data = {
        "model": "tiny-llama",
        "profile": "datasheet:h100-sxm-80gb",
        "trace": {
            "synth": {
                "requests": 9,
                "arrivals": {"process": "poisson", "rate": 50.0},
                "sessions": {
                    "turns": {"distribution": "constant", "value": 3},
                    "think_time": {"distribution": "constant", "value": 0.01},
                },
                "lengths": {
                    "prompt": {"distribution": "uniform", "low": 40, "high": 60},
                    "output": {"distribution": "constant", "value": 3},
                },
            }
        },
        "engine": {
            "preset": "reference",
            "kv_blocks": 14,
            "host_bandwidth": 1e10,
            "kv_offload": {
                "host_blocks": 14,
                "disk": {"blocks": 100, "read_bandwidth": 1e9, "write_bandwidth": 1e9},
            },
        },
    }
    scenario = make_scenario(data, {}, tmp_path, "made")
    measure_reference(scenario, Machine("cpu", 1), tmp_path / "measured")
    measured = read_run(tmp_path / "measured")
    engine, _, _ = read_measurement(tmp_path / "measured")
    simulated = simulate(scenario)
    told = measured.metrics["kv_offload"]
    assert told.keys() == simulated.metrics["kv_offload"].keys()
    assert told["written"] > 0 and told["stored"] > 0
    block_bytes = 16 * load_model("tiny-llama").kv_bytes_per_token()
    assert engine["kv_write_bytes"] == told["written"] // 16 * block_bytes
    assert {"kv_write", "kv_store"} <= set(measured.events["kind"]) & set(simulated.events["kind"])


@pytest.mark.parametrize("setting", [{"weight_offload": {"layers": 1}}])
def test_what_only_a_simulated_engine_has_is_refused(tmp_path: Path, setting: dict) -> None:
    data = {"model": "tiny-llama", "profile": "datasheet:h100-sxm-80gb", "trace": {"synth": {"requests": 1}}}
    data |= {"engine": {"host_bandwidth": 1e9} | setting}
    data["trace"]["synth"] |= {"arrivals": {"process": "poisson", "rate": 1.0}}
    data["trace"]["synth"] |= {
        "lengths": {name: {"distribution": "constant", "value": 9} for name in ("prompt", "output")}
    }
    with pytest.raises(UserError, match=r"engine.weight_offload is given; expected none"):
        measure_reference(make_scenario(data, {}, tmp_path, "made"), Machine("cpu", 1), tmp_path / "out")
