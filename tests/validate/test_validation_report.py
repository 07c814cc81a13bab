"""The page and the file of a validation say what was compared, and escape what users named."""

import json

import pytest

# Runs of hand-made times; pytest puts tests/support on the path.
from run_tables import queue_run

from sim.results.folder import Run
from sim.results.metrics import compute
from sim.results.slo import Slo
from validate.gain_rows import signed_percent
from validate.recording import Lateness
from validate.report import write_report
from validate.validation import Policy, Validation, worst


def run(name, **options):
    requests, steps = queue_run(60, replicas=1, **options)
    metrics = compute(requests, steps, slo=Slo(ttft=1.0), gpus=1, gpu_hour_price=None, kv_blocks_total=None)
    return Run(requests, steps, metrics, {}, [], name)


@pytest.fixture(scope="module")
def validation():
    policies = [
        Policy("<b>quick</b>", run("p"), [run("m"), run("m", slowdown=1.1)], {"engine.max_num_seqs": 16}),
        Policy("slow", run("p", slowdown=2.0), [run("m", slowdown=2.1), run("m", slowdown=2.2)]),
    ]
    return Validation(policies, {"device": "cpu & more", "threads": 1}, Lateness(60, 1e-6, 2e-6, 3e-6))


def test_page(validation, tmp_path):
    write_report(validation, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    body = page[page.index("<body>") :]
    assert "<b>quick</b>" not in body
    assert "&lt;b&gt;quick&lt;/b&gt;" in body
    assert "cpu &amp; more" in body
    assert "engine.max_num_seqs = 16" in body
    assert body.index("Did the order") < body.index("Error of each policy") < body.index("How it was measured")
    assert body.count("quantile by quantile") == 6
    error = validation.policies[1].comparison.metrics["e2e.mean"].error
    assert signed_percent(error) in body


def test_file(validation, tmp_path):
    validation.write_json(tmp_path / "validation.json")
    content = json.loads((tmp_path / "validation.json").read_text())
    assert set(content) == {"study", "objective", "gains", "refused", "policies", "ranking", "engine", "lateness"}
    first = content["policies"][0]
    assert first["name"] == "<b>quick</b>"
    assert first["parameters"] == {"engine.max_num_seqs": 16}
    assert first["repeats"] == 2
    assert first["spread"]["e2e.mean"] > 0
    assert content["ranking"]["e2e.mean"]["predicted"] == ["<b>quick</b>", "slow"]
    assert content["ranking"]["e2e.mean"]["held"] is True
    assert [file.name for file in tmp_path.iterdir()] == ["validation.json"]


def test_a_single_policy_has_no_ranking(validation, tmp_path):
    single = Validation(validation.policies[:1], {}, None)
    write_report(single, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Did the order" not in page
    assert "1 policy, 60 requests" in page
    assert single.as_json()["lateness"] is None


def test_worst_of_several_replays():
    assert worst([]) is None
    assert worst([Lateness(3, 0.1, 0.3, 0.5), Lateness(4, 0.2, 0.2, 0.9)]) == Lateness(7, 0.2, 0.3, 0.9)
