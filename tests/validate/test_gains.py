"""What a policy gains over the baseline: arithmetic, verdicts, their order, and how they are told."""

import json
from io import StringIO

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from calibrate.quality import Estimate, PolicyQuality
from sim.results.folder import Run
from sim.results.tables import EVENTS
from validate.copies import copies_of
from validate.display import show_gains
from validate.gain_rows import gain_row, quality_text
from validate.gains import gains, relative_gain
from validate.validation import Policy, Validation
from validate.winners import CheckedStudies, write_winners_report

positive = st.floats(1e-3, 1e3)


def run(ttft, events=()):
    requests = pl.DataFrame(
        {"request_id": [0], "prompt_tokens": [1], "status": ["finished"], "ttft": [ttft], "tpot": [ttft], "e2e": [ttft]}
    ).with_columns(queue=pl.lit(0.0))
    rows = [
        {
            "time": 0.0,
            "replica": 0,
            "kind": kind,
            "request_id": None,
            "seconds": seconds,
            "amount": amount,
            "detail": detail,
        }
        for kind, detail, amount, seconds in events
    ]
    metrics = {"ttft": {"mean": ttft}, "tpot": {}, "e2e": {}, "queue": {}, "throughput": {"requests": 1 / ttft}}
    return Run(requests, pl.DataFrame(), metrics, {}, [], "run", events=pl.DataFrame(rows, schema=EVENTS))


def policy(name, predicted, *measured, **options):
    return Policy(name, run(predicted), [run(value) for value in measured], also=("ttft.mean",), **options)


def study(*policies, name="a", objective="ttft.mean"):
    return Validation(policies, {"engine": "reference", "device": "cpu"}, None, name, objective)


def one(predicted, measured, baseline=(10.0, 10.0, 10.0)):
    found = gains([study(policy("winner-1", predicted, *measured), policy("baseline", 10.0, *baseline))])
    assert len(found) == 1
    return found[0]


@given(positive, positive)
def test_a_gain_is_a_share_of_the_baseline(baseline, value):
    smaller = relative_gain("ttft.mean", baseline, value)
    assert smaller == pytest.approx((baseline - value) / baseline)
    assert relative_gain("throughput.requests", baseline, value) == pytest.approx(-smaller)
    assert (smaller > 0) == (value < baseline)


@pytest.mark.parametrize(("baseline", "value"), [(None, 1.0), (1.0, None), (0.0, 1.0)])
def test_a_gain_over_nothing_is_not_known(baseline, value):
    assert relative_gain("ttft.mean", baseline, value) is None


def test_no_change_is_no_gain_even_of_nothing():
    assert relative_gain("preemptions", 0.0, 0.0) == 0.0
    assert relative_gain("kv.peak", 1.0, 2.0) is None  # neither large nor small is better


def test_each_repeat_is_held_to_the_baseline_beside_it():
    """The machine gets twice as slow; every pair says the same."""
    gain = one(8.0, (9.0, 18.0), baseline=(10.0, 20.0))
    assert gain.measured == pytest.approx(0.1)
    assert gain.spread == pytest.approx(0.0)
    assert gain.predicted == pytest.approx(0.2)
    assert gain.verdict == "as predicted"


@pytest.mark.parametrize(
    ("predicted", "measured", "verdict"),
    [
        (8.0, (9.0, 9.0, 9.1), "as predicted"),
        (12.0, (11.0, 11.0, 11.1), "as predicted"),
        (8.0, (11.0, 11.0, 11.1), "other sign"),
        (12.0, (9.0, 9.0, 9.1), "other sign"),
        (8.0, (9.0, 11.0, 10.0), "no difference"),
        (10.0, (9.0, 9.0, 9.0), "not predicted"),
        (10.0, (10.0, 10.0, 10.0), "no difference"),
        (8.0, (9.9, 9.7, 10.0), "no difference"),
    ],
)
def test_verdicts(predicted, measured, verdict):
    assert one(predicted, measured).verdict == verdict


@settings(max_examples=25)
@given(positive, st.lists(st.tuples(positive, positive), min_size=1, max_size=4))
def test_a_gain_within_the_spread_is_never_a_verdict(predicted, pairs):
    gain = one(predicted, [after for after, _ in pairs], [before for _, before in pairs])
    each = [(before - after) / before for after, before in pairs]
    assert gain.repeats == len(pairs)
    assert gain.measured == pytest.approx(sum(each) / len(each))
    assert (gain.spread is None) == (len(pairs) == 1)
    if len(pairs) > 1 and abs(gain.measured) <= max(each) - min(each) - 1e-9:
        assert gain.verdict == "no difference"
    if gain.verdict == "other sign":
        assert gain.measured * gain.predicted < 0
    if gain.verdict == "as predicted":
        assert gain.measured * gain.predicted > 0


def test_without_a_baseline_nothing_is_known():
    assert [gain.verdict for gain in gains([study(policy("winner-1", 1.0, 1.0))])] == ["not known"]
    assert gains([study(policy("winner-1", 1.0, 1.0), name="")]) == []


def test_what_went_the_other_way_comes_first():
    first = study(policy("held", 8.0, 8.0, 8.0), policy("baseline", 10.0, 10.0, 10.0), name="first")
    second = study(
        policy("same", 8.0, 10.0, 10.1),
        policy("lost", 8.0, 12.0, 12.0),
        policy("baseline", 10.0, 10.0, 10.0),
        name="second",
    )
    found = gains([first, second])
    assert [(gain.study, gain.policy) for gain in found] == [("second", "lost"), ("first", "held"), ("second", "same")]


def test_whom_a_policy_changed_places_with():
    validation = study(
        policy("a", 5.0, 8.0, 8.0),
        policy("b", 6.0, 7.0, 7.0),
        policy("c", 9.0, 9.0, 9.0),
        policy("baseline", 10.0, 10.0, 10.0),
    )
    found = {gain.policy: gain for gain in gains([validation])}
    assert (found["a"].order_held, found["a"].flipped) == (False, ["b"])
    assert (found["b"].order_held, found["b"].flipped) == (False, ["a"])
    assert (found["c"].order_held, found["c"].flipped) == (True, [])
    tied = one(8.0, (8.0, 12.0), baseline=(10.0, 10.0))
    assert tied.order_held is None


QUALITY = PolicyQuality(
    pruning={"skip_layers": {"layers": [1]}},
    kl=Estimate(mean=0.0123, low=0.01, high=0.02),
    top1=Estimate(mean=0.982, low=0.979, high=0.985),
    perplexity=Estimate(mean=5.0, low=4.9, high=5.1),
    perplexity_ratio=Estimate(mean=1.01, low=1.0, high=1.02),
)


def test_quality_is_told_where_a_model_is_pruned():
    validation = study(
        policy("plain", 8.0, 8.0),
        policy("unknown", 8.0, 8.0, pruned=True),
        policy("known", 8.0, 8.0, pruned=True, quality=QUALITY),
        policy("baseline", 10.0, 10.0),
    )
    plain, unknown, known = gains([validation])
    assert quality_text(plain) == "–"
    assert quality_text(unknown) == "quality not measured"
    assert quality_text(known) == "top-1 98.2 % (97.9 to 98.5), KL 0.0123, perplexity × 1.01"
    assert [gain.as_json()["quality"] for gain in (plain, unknown)] == [None, "quality not measured"]
    assert known.as_json()["quality"]["top1"] == {"mean": 0.982, "low": 0.979, "high": 0.985}
    assert gain_row(plain)[5] == "one repeat"


def test_copies_predicted_beside_measured():
    predicted = run(1.0, [("copy", "out", 3, 0.5), ("copy", "out", 1, 0.25), ("kv_fetch", "from disk", 2, 1.0)])
    measured = [run(1.0, [("copy", "out", 5, 0.7)]), run(1.0, [("copy", "out", 3, 0.5), ("copy", "in", 2, None)])]
    found = {copies.what: copies for copies in copies_of(predicted, measured, 100)}
    assert set(found) == {"copy out", "copy in", "kv_fetch from disk"}
    out = found["copy out"]
    assert (out.predicted_bytes, out.measured_bytes) == (400, 400)
    assert out.predicted_seconds == pytest.approx(0.75)
    assert out.measured_seconds == pytest.approx(0.6)
    assert (found["copy in"].predicted_bytes, found["copy in"].measured_bytes) == (0, 100)
    assert found["kv_fetch from disk"].measured_bytes == 0
    assert copies_of(run(1.0), [run(1.0)], 100) == []


def test_page_file_and_table_of_several_studies(tmp_path):
    first = study(policy("<b>", 8.0, 12.0, 12.0), policy("baseline", 10.0, 10.0, 10.0), name="batching")
    second = study(
        policy(
            "known",
            8.0,
            8.0,
            8.0,
            pruned=True,
            quality=QUALITY,
            copies=copies_of(run(1.0, [("copy", "in", 3, 0.1)]), [], 4),
        ),
        policy("baseline", 10.0, 10.0, 10.0),
        name="pruning",
    )
    second.refused["winner-2"] = "2 GPUs & more"
    checked = CheckedStudies([first, second])
    checked.write_json(tmp_path / "validation.json")
    content = json.loads((tmp_path / "validation.json").read_text())
    assert [gain["verdict"] for gain in content["gains"]] == ["other sign", "as predicted"]
    assert content["refused"] == {"batching": {}, "pruning": {"winner-2": "2 GPUs & more"}}
    assert content["studies"]["pruning"] == "pruning/validation.json"
    write_winners_report(checked, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    body = page[page.index("<body>") :]
    assert "<b>" not in body.replace("<b>1 of 2</b>", "").replace("<b>0 of 2</b>", "")
    assert body.index("other sign") < body.index("as predicted")
    assert "2 GPUs &amp; more" in body
    assert "What was copied" in body
    console = Console(width=220, record=True, file=StringIO())
    show_gains(checked.gains, console)
    told = console.export_text()
    assert told.index("<b>") < told.index("known")
    assert "-20.0 %" in told
