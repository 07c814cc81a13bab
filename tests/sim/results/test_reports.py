"""The pages: the numbers stand first, and a browser draws every picture offline and without complaint."""

import itertools
import re
from pathlib import Path

import polars as pl
import pytest
from browser import drawn_figures, show
from run_tables import LAW, queue_run, replica_table

from ground.assumption import Assumption
from sim.results import energy
from sim.results.energy import ReplicaPower
from sim.results.fleet_charts import come_and_go
from sim.results.folder import Run
from sim.results.metric_names import flatten
from sim.results.metrics import compute
from sim.results.pareto import sweep_fronts
from sim.results.report import write_report
from sim.results.slo import Slo
from sim.results.sweep_report import write_sweep_report
from sim.results.tables import REQUESTS, STEPS

SLO = Slo(ttft=1.0, tpot=0.05, attainment=0.9)
PARAMETERS = ["engine.max_num_seqs", "engine.policy"]


def make_run(requests: pl.DataFrame, steps: pl.DataFrame, slo: Slo = SLO, price: float | None = 3.5) -> Run:
    metrics = compute(requests, steps, slo=slo, gpus=2, gpu_hour_price=price, kv_blocks_total=2400)
    assumptions = [Assumption("engine.host_overhead", 0.0012, "s", "measured", "a <b>profile</b>")]
    return Run(requests, steps, metrics, {"engine": {"policy": "<i>fcfs"}}, assumptions, name="A & B")


def make_points() -> pl.DataFrame:
    rows = []
    for point, (slots, policy) in enumerate(itertools.product((2, 8, 16), ("fcfs", "<b>priority"))):
        row = {"point": point, "engine.max_num_seqs": slots, "engine.policy": policy}
        if point == 3:
            rows.append(row | {"status": "failed", "error": "engine.kv_blocks: found 10; expected at least 64"})
        else:
            run = make_run(*queue_run(200, slots=slots, rate=9.0, seed=point), price=1 + slots / 40)
            rows.append(row | {"status": "ok", "error": None} | flatten(run.metrics))
    return pl.DataFrame(rows, infer_schema_length=None)


def tile(html: str, label: str) -> str:
    found = re.search(rf"<b>([^<]*)</b><span>{label}", html)
    assert found, label
    return found[1]


def test_the_run_page_is_drawn_offline(tmp_path: Path) -> None:
    write_report(make_run(*queue_run(400)), tmp_path / "report.html")
    document, console = show(tmp_path / "report.html", tmp_path)
    assert console == []
    assert drawn_figures(document) == (8, 8)
    assert 'class="main-svg"' in document
    assert document.count('class="trace scatter') >= 12


def test_a_fleets_page_is_drawn_offline(tmp_path: Path) -> None:
    """Replicas come and go, requests end in every way, and there are prices and watts."""
    requests, steps = queue_run(400)
    lost = pl.col("request_id") % 10 == 3
    status = pl.when(lost).then(pl.lit("shed")).when(pl.col("request_id") % 10 == 4).then(pl.lit("timed_out"))
    requests = requests.with_columns(status=status.otherwise("status"))
    replicas = replica_table(
        {"pool": "prefill", "gpu_hour_price": 3.0, "ended": 20.0, "why": "scaled down"},
        {"pool": "decode", "gpu_hour_price": 2.0, "requested": 5.0, "ready": 15.0},
        {"pool": "decode", "gpu_hour_price": 2.0, "requested": 30.0, "ready": None},
    )
    run = make_run(requests, steps)
    run.metrics = compute(requests, steps, slo=SLO, gpus=2, gpu_hour_price=2.0, kv_blocks_total=2400, replicas=replicas)
    drawn = energy.compute(requests, steps, replicas, [ReplicaPower(LAW)] * 3, electricity_price=0.3)
    assert drawn is not None
    run.metrics["energy"], run.replicas = drawn, replicas
    write_report(run, tmp_path / "report.html")
    document, console = show(tmp_path / "report.html", tmp_path)
    assert console == []
    assert drawn_figures(document) == (9, 9)
    assert tile(document, "Shed requests") == str(run.metrics["requests"]["shed"])
    assert tile(document, "Mean power").endswith("W")
    assert tile(document, "Energy per output token").endswith("J/token")
    assert re.search(r"\d", tile(document, "Cost per request within the SLO"))
    assert "prefill: paid for" in document and "pool decode" in document


def test_replicas_that_are_always_there_are_not_drawn(tmp_path: Path) -> None:
    run = make_run(*queue_run(100))
    run.replicas = replica_table({}, {})
    assert not come_and_go(run.replicas)
    write_report(run, tmp_path / "r.html")
    assert "paid for" not in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert come_and_go(replica_table({}, {"ended": 5.0})) and come_and_go(replica_table({"ready": None}))


def test_the_sweep_page_is_drawn_offline(tmp_path: Path) -> None:
    points = make_points()
    write_sweep_report(points, parameters=PARAMETERS, pareto=sweep_fronts(points), winners=[4, 2], baseline=0, slo=SLO,
                       path=tmp_path / "report.html")  # fmt: skip
    document, console = show(tmp_path / "report.html", tmp_path)
    assert console == []
    assert drawn_figures(document) == (4, 4)


def test_the_numbers_stand_before_the_pictures(tmp_path: Path) -> None:
    run = make_run(*queue_run(400))
    write_report(run, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    body = html[html.index("<body>") :]
    top = body[: body.index('class="figure"')]
    assert tile(top, "[0-9.]+ % of requests") == ("SLO met" if run.metrics["slo"]["met"] else "SLO missed")
    assert tile(top, "Finished requests") == "392"
    assert tile(top, "Rejected requests") == "8"
    assert tile(top, "Preemptions") == str(run.metrics["preemptions"])
    for label in ("Cost per million output tokens", "TTFT p99", "TPOT p99", "Output throughput", "KV use peak"):
        assert re.search(r"\d", tile(top, label))
    assert "A &amp; B" in top
    assert "a &lt;b&gt;profile" in body
    assert "&lt;i&gt;fcfs" in body


@pytest.mark.parametrize(("limit", "verdict", "tone"), [(1e6, "SLO met", "good"), (1e-6, "SLO missed", "bad")])
def test_the_verdict_follows_the_limit(tmp_path: Path, limit: float, verdict: str, tone: str) -> None:
    write_report(make_run(*queue_run(100), slo=Slo(ttft=limit, attainment=0.9)), tmp_path / "r.html")
    assert f'<div class="number {tone}"><b>{verdict}</b>' in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_run_of_nothing_has_a_page(tmp_path: Path) -> None:
    write_report(make_run(pl.DataFrame(schema=REQUESTS), pl.DataFrame(schema=STEPS)), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert tile(html, "TTFT p99") == "–"
    assert tile(html, "SLO: no requests") == "–"


def test_the_sweep_page_compares_winner_and_baseline(tmp_path: Path) -> None:
    points = make_points()
    write_sweep_report(points, parameters=PARAMETERS, pareto=sweep_fronts(points), winners=[4], baseline=0, slo=SLO,
                       path=tmp_path / "s.html")  # fmt: skip
    html = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert tile(html, "winner") == "point 4"
    assert re.search(r'class="number good"><b>[^<]*</b><span>TTFT p99; baseline [\d.]+ s<', html)
    assert "found 10; expected at least 64" in html
    assert "6 points, 1 failed" in html
    assert "<b>priority" not in html


def test_a_sweep_without_price_or_winner_says_so(tmp_path: Path) -> None:
    points = make_points().with_columns(pl.lit(None, pl.Float64).alias("cost.per_million_output_tokens"))
    write_sweep_report(points, parameters=PARAMETERS, pareto=sweep_fronts(points), winners=[], baseline=None, slo=SLO,
                       path=tmp_path / "s.html")  # fmt: skip
    html = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "Cost against goodput: not drawn" in html
    assert tile(html, "no point meets the SLO").endswith("%")


def test_a_sweep_in_which_all_failed_has_a_page(tmp_path: Path) -> None:
    points = make_points().filter(pl.col("status") == "failed")
    write_sweep_report(points, parameters=PARAMETERS, pareto=sweep_fronts(points), winners=[], baseline=None, slo=SLO,
                       path=tmp_path / "s.html")  # fmt: skip
    assert "1 points, 1 failed" in (tmp_path / "s.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("values", [[[1, 2], [3], None], [True, False, None], [None, None, 0.5]])
def test_a_parameter_may_be_a_list_or_missing(tmp_path: Path, values: list[object]) -> None:
    points = make_points()[:3].with_columns(pl.Series("engine.capture", values))
    write_sweep_report(points, parameters=["engine.capture"], pareto=sweep_fronts(points), winners=[1], baseline=0,
                       slo=SLO, path=tmp_path / "s.html")  # fmt: skip
    assert "Every point by its engine.capture" in (tmp_path / "s.html").read_text(encoding="utf-8")
