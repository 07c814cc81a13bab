"""The real engine with drafts from prompt lookup: what plain greedy decoding says, the simulator's tables, counts."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from real_engine_runs import TINY, VOCABULARY, configs, greedy_without_cache, make_trace, traces
from speculative_runs import LinearVerifyTimes, speculating
from tiny_model_config import CONFIG

from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder, SequenceInput
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.speculative.drafter import DrawnDrafter
from sim.engine.speculative.settings import SpeculativeSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.results.folder import read_run
from simctl import main
from validate.engine.engine import Engine
from validate.engine.ngram import NgramIndex
from validate.engine.speculation import NgramDrafter
from validate.replay.transformers_manager import check_limits


def longest_match(tokens: list[int], least: int, longest: int) -> int | None:
    """The same by looking everywhere."""
    for length in range(longest, least - 1, -1):
        for end in range(length, len(tokens)):
            if tokens[end - length : end] == tokens[-length:] and length <= len(tokens):
                return end
    return None


@settings(max_examples=80)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.data())
def test_a_lookup_finds_the_first_of_the_longest_runs(tokens: list[int], data: st.DataObject) -> None:
    least = data.draw(st.integers(1, 3))
    longest = data.draw(st.integers(least, 4))
    index, known = NgramIndex(least, longest), 0
    while known < len(tokens):
        known += data.draw(st.integers(1, 7))
        assert index.goes_on(tokens[:known]) == longest_match(tokens[:known], least, longest)


@st.composite
def lookups(draw: st.DrawFn) -> dict[str, int]:
    least = draw(st.integers(1, 3))
    return {
        "tokens": draw(st.integers(1, 5)),
        "prompt_lookup_min": least,
        "prompt_lookup_max": draw(st.integers(least, 4)),
    }


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6), st.booleans()), min_size=1, max_size=4), st.data())
def test_every_position_is_sampled_as_if_it_were_the_last(
    lengths: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    """Beside sequences that verify nothing, of one token and of several."""
    token = st.integers(0, VOCABULARY - 1)
    texts = [data.draw(st.lists(token, min_size=cached + new, max_size=cached + new)) for cached, new, _ in lengths]
    tables = [list(range(5 * row, 5 * row + 5)) for row in range(len(texts))]
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=20, block_size=8)
    decoder.step(
        [
            SequenceInput(text[:cached], 0, table)
            for text, table, (cached, _, _) in zip(texts, tables, lengths, strict=True)
        ]
    )
    launched = decoder.launch(
        [
            SequenceInput(text[cached:], cached, table, samples=new if verifies else 1)
            for text, table, (cached, new, verifies) in zip(texts, tables, lengths, strict=True)
        ]
    )
    samples = launched.samples()
    plain = Decoder(TINY, dtype=torch.float64, kv_blocks=5, block_size=8)
    for text, own, (_, new, verifies) in zip(texts, samples, lengths, strict=True):
        ends = range(len(text) - (new if verifies else 1) + 1, len(text) + 1)
        assert own == [plain.step([SequenceInput(text[:end], 0, list(range(5)))])[0] for end in ends]
    assert launched.tokens() == [own[-1] for own in samples]
    # The next step may name a row whose last sample the host has not seen.
    rows = range(len(texts))
    unseen = [SequenceInput([0], len(texts[row]), tables[row], row) for row in rows]
    known = [SequenceInput([samples[row][-1]], len(texts[row]), tables[row]) for row in rows]
    assert decoder.step(unseen) == decoder.step(known)


def test_a_step_samples_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrate.decoder._MAX_SEQUENCES", 4)
    decoder = Decoder(TINY, kv_blocks=2)
    assert len(decoder.launch([SequenceInput([1, 2, 3, 4], 0, [0], samples=4)]).samples()[0]) == 4
    with pytest.raises(UserError, match="a step that samples 5 tokens; expected at most 4"):
        decoder.launch([SequenceInput([1, 2, 3, 4, 5], 0, [0], samples=5)])


@settings(max_examples=6)
@given(lookups(), st.integers(7, 16), st.integers(8, 40), st.sampled_from([0, 6]), st.integers(0, 3))
def test_tokens_are_those_of_plain_greedy_decoding(
    lookup: dict[str, int], kv_blocks: int, budget: int, swap_blocks: int, more: int
) -> None:
    """Under chunked prefill, shared prefixes, and preemption with recompute and swap; token by token."""
    shared = {"prefix_ids": [1, 2], "prefix_block_tokens": 8}
    trace = make_trace(
        [{"arrival": 0.0, "prompt_tokens": 16 + i, "output_tokens": 20, **shared} for i in range(2)]
        + [{"arrival": 1e-4 * i, "prompt_tokens": 6 + more, "output_tokens": 1 + 11 * i} for i in range(3)]
    )
    config = EngineConfig(
        kv_blocks=kv_blocks,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        swap_blocks=swap_blocks,
        speculative=lookup,
    )
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=kv_blocks, block_size=8)
    engine = Engine(config, decoder, vocabulary=VOCABULARY, swap=BlockSwap(decoder, swap_blocks))
    measured = engine.replay(trace)
    assert measured.requests["status"].to_list() == ["finished"] * 5
    assert engine.outputs == greedy_without_cache(trace, 7, 8)
    facts = measured.engine
    totals = {
        kind: int(measured.events.filter(pl.col("kind") == kind)["amount"].sum()) for kind in ("drafted", "accepted")
    }
    assert totals == {kind: facts[f"speculative.{kind}"] for kind in totals}
    if not measured.requests["preemptions"].sum():
        later = int(measured.requests["output_tokens"].sum()) - 5
        assert int(measured.steps["decode_seqs"].sum()) + totals["accepted"] == later


def test_a_text_that_repeats_is_drafted_and_what_was_measured_feeds_the_simulator() -> None:
    """Greedy decoding of a small model soon goes round in circles."""
    trace = make_trace([{"arrival": 0.0, "prompt_tokens": 12 + i, "output_tokens": 90} for i in range(4)])
    lookup = {"tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 3}
    config = EngineConfig(kv_blocks=80, block_size=8, max_num_seqs=4, speculative=lookup)
    engine = Engine(config, Decoder(TINY, dtype=torch.float64, kv_blocks=80, block_size=8), vocabulary=VOCABULARY)
    measured = engine.replay(trace)
    assert engine.outputs == greedy_without_cache(trace, 13, 8)
    assert measured.engine["speculative.accepted"] > 50
    fed = {
        name: yaml.safe_load(str(measured.engine[f"speculative.{name}"]))
        for name in ("acceptance", "proposals", "host_seconds")
    }
    predicted = EngineConfig(kv_blocks=80, block_size=8, max_num_seqs=4, speculative={**lookup, **fed})
    result = equal_replicas(trace.requests, predicted, LinearVerifyTimes()).run()
    steps, real = (int(table["decode_seqs"].sum()) for table in (result.steps, measured.steps))
    assert real == 4 * 89 - measured.engine["speculative.accepted"]
    assert steps == pytest.approx(real, rel=0.1)


class VerifyTime:
    """Clock and decoder in one: time passes by waiting and by what the simulator says of the same step."""

    ahead = False

    def __init__(self) -> None:
        self.time = 0.0
        self.times = LinearVerifyTimes()

    def start(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait_until(self, when: float) -> None:
        self.time = when

    def launch(self, batch):
        return VerifyStep(self, batch)


class VerifyStep:
    graph = False

    def __init__(self, decoder, batch):
        self._decoder, self._batch = decoder, batch

    def tokens(self):
        work = [(len(one.tokens), one.start) for one in self._batch]
        tokens, cached = (sum(column) for column in zip(*work, strict=True))
        times = self._decoder.times
        self._decoder.time += times.base + times.per_token * tokens + times.per_kv * cached
        return [0] * len(self._batch)

    def samples(self):
        return [[0] * one.samples for one in self._batch]


class DrawingDrafter(NgramDrafter):
    """Drafts and keeps what a simulation would draw."""

    drawn: DrawnDrafter

    def drafts(self, request, most):
        count = self.drawn.drafts(request, most)
        self._drafts[request.request_id] = [0] * count
        return count

    def keep(self, request, drafts, sampled):
        self._kept[request.request_id] = kept = self.drawn.accepted(request, len(drafts))
        return list(sampled[: kept + 1])


class DrawingEngine(Engine):
    def _speculate(self, scheduler):
        speculation = super()._speculate(scheduler)
        speculation.drafter.__class__ = DrawingDrafter
        speculation.drafter.drawn = DrawnDrafter(self.config.speculative)
        return speculation


@settings(max_examples=25)
@given(traces(), configs(), st.integers(1, 5), st.sampled_from([0.3, 0.9]), st.sampled_from([0.5, 1.0]))
def test_the_same_luck_gives_the_simulators_tables(trace, config, tokens, acceptance, proposals) -> None:
    config = speculating(
        config.model_copy(update={"swap_blocks": 0}), tokens=tokens, acceptance=acceptance, proposals=proposals
    )
    predicted = equal_replicas(trace.requests, config, LinearVerifyTimes(), leap=False).run()
    fake = VerifyTime()
    measured = DrawingEngine(config, fake, vocabulary=VOCABULARY, clock=fake, warm_up=False).replay(trace)
    assert_frame_equal(measured.requests, predicted.requests, abs_tol=1e-9, rel_tol=0)
    assert_frame_equal(measured.steps, predicted.steps, abs_tol=1e-9, rel_tol=0)
    of_drafts = pl.col("kind").is_in(["drafted", "accepted"])
    columns = ["time", "kind", "amount"]
    assert_frame_equal(
        measured.events.filter(of_drafts).select(columns),
        predicted.events.filter(of_drafts).select(columns),
        abs_tol=1e-9,
        rel_tol=0,
    )


def test_measured_rates_do_not_rise() -> None:
    """Short drafts are verified at few positions only, and their shares are of different steps."""

    class Numbered:
        request_id = 0

    drafter = NgramDrafter(SpeculativeSettings(tokens=3), {}, lambda: 0.0)
    for drafts, sampled in (([1], [2, 0]), ([1], [3, 0]), ([1, 2, 3], [1, 2, 4, 0])):
        drafter.keep(Numbered(), drafts, sampled)
    assert yaml.safe_load(drafter.measured()["speculative.acceptance"]) == pytest.approx([1 / 3, 1 / 3, 0.0], abs=1e-4)
    assert np.isfinite(drafter.measured()["speculative.host_seconds"])


def test_a_draft_model_is_the_simulators_alone() -> None:
    config = EngineConfig(kv_blocks=8, speculative={"method": "draft", "draft_model": "any", "tokens": 2})
    engine = Engine(config, Decoder(TINY, kv_blocks=8), vocabulary=VOCABULARY, warm_up=False)
    with pytest.raises(UserError, match=r"engine\.speculative\.method is draft; expected ngram"):
        engine.replay(make_trace([{"arrival": 0.0, "prompt_tokens": 4, "output_tokens": 2}]))


def test_from_the_command_line_to_the_simulator(tmp_path) -> None:
    """What a measured run writes is what a scenario takes, key by key."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    length = {name: {"distribution": "constant", "value": value} for name, value in (("prompt", 20), ("output", 40))}
    scenario = {
        "trace": {"synth": {"requests": 3, "arrivals": {"process": "constant", "rate": 100}, "lengths": length}},
        "model": "config.json",
        "profile": "datasheet:h100-sxm-80gb",
        "engine": {
            "preset": "reference",
            "kv_blocks": 32,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "speculative": {"tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 2},
        },
    }
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(scenario))
    file, measured = str(tmp_path / "scenario.yaml"), tmp_path / "measured"
    refused = CliRunner().invoke(main, ["run", file, "-o", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "engine.speculative.acceptance is not given" in refused.output
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(
            main, ["validate", "replay", file, "--engine", "reference", "--threads", "1", "-o", str(measured)]
        )
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    facts = json.loads((measured / "measurement.json").read_text())["engine"]
    assert read_run(measured).metrics["speculation"]["drafted"] == facts["speculative.drafted"] > 0
    fed = [
        argument
        for name in ("acceptance", "proposals", "host_seconds")
        for argument in ("--set", f"engine.speculative.{name}={facts[f'speculative.{name}']}")
    ]
    done = CliRunner().invoke(main, ["run", file, *fed, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    predicted = read_run(tmp_path / "out")
    assert predicted.scenario["engine"]["speculative"]["acceptance"] == yaml.safe_load(facts["speculative.acceptance"])
    assert predicted.metrics["speculation"]["drafted"] > 0


def test_other_real_engines_are_not_asked_to_speculate() -> None:
    config = EngineConfig(kv_blocks=8, speculative={"tokens": 2})
    with pytest.raises(UserError, match=r"engine\.speculative is .*; transformers runs with None and no other"):
        check_limits(config, "cpu")
