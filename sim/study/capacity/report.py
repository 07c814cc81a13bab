"""How much a fleet can take, or how many replicas a rate needs: as data, on the terminal, and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from ground.page import PALETTE, Page
from ground.whole_file import whole_file
from sim.results.display import UNKNOWN, digits, share
from sim.study.capacity.bisection import DOUBLINGS
from sim.study.capacity.capacity import LONG_ENOUGH, Answer, Capacity, value_of
from sim.study.scenario import scenario_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def write_capacity(found: Capacity, name: str, folder: Path) -> None:
    """Write `capacity.json` and `report.html`; `name` is the scenario's."""
    with whole_file(folder / "capacity.json") as partial:
        partial.write_text(json.dumps(_as_json(found), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with whole_file(folder / "report.html") as partial:
        _page(found, name).write(partial)


def print_capacity(found: Capacity) -> None:
    """A row a variant, and below it what makes a value doubtful."""
    header, rows = _table(found)
    table = Table(*header, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for line in remarks(found):
        click.echo(line)


def fewest(answer: Answer) -> float | None:
    """The replicas that keep the SLO under every seed; null where under some seed none do."""
    known = [value for value in answer.values if value is not None]
    return max(known) if len(known) == len(answer.values) else None


def remarks(found: Capacity) -> list[str]:
    """What a reader must know beside the numbers, a line each."""
    study, lines = found.study, []
    unit = "requests/s" if study.rate is None else "replicas"
    for answer in found.answers:
        of = f"{_variant(answer)}: " if len(found.answers) > 1 else ""
        for lane, value in zip(_lanes(found, answer), answer.values, strict=True):
            if value is None:
                lines.append(f"{of}seed {lane.seed}: {_nowhere(found, lane.probes)}")
        for seed, missed, kept in answer.violations:
            lines.append(
                f"{of}seed {seed}: the SLO is missed at {digits(missed)} {unit} and kept at {digits(kept)}; "
                "the value found is one of several"
            )
        if answer.short:
            seeds = ", ".join(str(seed) for seed in answer.short)
            lines.append(
                f"{of}seeds {seeds}: the run lasts less than {LONG_ENOUGH} of its slowest requests, so a growing "
                "queue may not have been seen to grow; a longer trace may give less"
            )
        if (
            len({*answer.values}) == 1
            and len(answer.values) > 1
            and study.rate is None
            and answer.values[0] is not None
        ):
            lines.append(f"{of}every seed gives the same: the interval says nothing of another trace")
    return lines


def _as_json(found: Capacity) -> dict[str, Any]:
    confidence = found.study.confidence
    answers = []
    for answer in found.answers:
        interval = answer.interval(confidence)
        entry: dict[str, Any] = {"setting": answer.setting, "by_seed": answer.values}
        if found.study.rate is None:
            entry |= {
                "rate": None if interval is None else interval.mean,
                "half_width": None if interval is None else interval.half,
                "gpus": answer.gpus,
            }
        else:
            replicas = fewest(answer)
            entry |= {"replicas": replicas, "gpus": None if replicas is None else replicas * answer.gpus}
        answers.append(
            entry
            | {
                "violations": [list(violation) for violation in answer.violations],
                "short_seeds": answer.short,
            }
        )
    probes = [
        {
            "variant": lane.variant,
            "seed": lane.seed,
            "at": value_of(found.study, lane, at),
            "slo.attainment": lane.probes[at]["slo.attainment"],
            "kept": lane.kept(at),
        }
        for lane in found.lanes
        for at in sorted(lane.probes)
    ]
    rate = {} if found.study.rate is None else {"rate": found.study.rate}
    return {**rate, "confidence": confidence, "answers": answers, "remarks": remarks(found), "probes": probes}


def _page(found: Capacity, name: str) -> Page:
    study = found.study
    slo = scenario_of(study.scenario, {}).slo
    limits = ", ".join(f"{key.upper()} ≤ {limit:g} s" for key, limit in slo.limits.items())
    asked = (
        "The largest rate that keeps the SLO"
        if study.rate is None
        else f"The fewest replicas that keep the SLO at {digits(study.rate)} requests/s"
    )
    page = Page(
        f"{name}: capacity",
        f"{asked}: {share(slo.attainment)} of the requests finish" + (f" with {limits}." if limits else "."),
    )
    page.table(*_table(found))
    for line in remarks(found):
        page.text(line)
    page.figure(_figure(found), "Every run: the share of requests within the SLO, over what was varied. A line a seed.")
    page.heading("How it was found")
    load = (
        "the same requests come faster or slower"
        if study.by == "stretch"
        else "copies of the trace are laid over each other and thinned; its length stays"
    )
    page.text(
        f"By bisection for each of {study.seeds} seeds, then looked at again around what was found. More load: {load}."
        + (f" A rate is found to {share(study.tolerance)}." if study.rate is None else "")
    )
    return page


def _table(found: Capacity) -> tuple[list[str], list[list[str]]]:
    study = found.study
    if study.rate is None:
        header = ["variant", "requests/s", "by seed", "GPUs", "per GPU"]
    else:
        header = ["variant", "replicas", "by seed", "GPUs"]
    rows = []
    for answer in found.answers:
        by_seed = ", ".join(digits(value) for value in answer.values)
        interval, replicas = answer.interval(study.confidence), fewest(answer)
        if study.rate is None:
            value = UNKNOWN if interval is None else digits(interval.mean)
            if interval is not None and interval.half is not None:
                value += f" ± {digits(interval.half)}"
            each = UNKNOWN if interval is None or not answer.gpus else digits(interval.mean / answer.gpus)
            rows.append([_variant(answer), value, by_seed, str(answer.gpus), each])
        else:
            gpus = None if replicas is None else replicas * answer.gpus
            rows.append([_variant(answer), digits(replicas), by_seed, digits(gpus)])
    return header, rows


def _figure(found: Capacity) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    for lane in found.lanes:
        at = sorted(lane.probes)
        figure.add_scatter(
            x=[value_of(found.study, lane, each) for each in at],
            y=[lane.probes[each]["slo.attainment"] for each in at],
            mode="lines+markers",
            name=f"{_variant(found.answers[lane.variant])}, seed {lane.seed}",
            line={"color": PALETTE[lane.variant % len(PALETTE)], "width": 1},
        )
    target = scenario_of(found.study.scenario, {}).slo.attainment
    figure.add_hline(y=target, line={"color": PALETTE[7], "dash": "dot", "width": 1})
    figure.update_xaxes(title="requests/s" if found.study.rate is None else "replicas", type="log")
    return figure.update_yaxes(title="SLO attainment", tickformat=".0%")


def _lanes(found: Capacity, answer: Answer) -> list[Any]:
    place = next(number for number, each in enumerate(found.answers) if each is answer)
    return [lane for lane in found.lanes if lane.variant == place]


def _nowhere(found: Capacity, probes: dict[float, dict[str, float | None]]) -> str:
    if found.study.rate is not None:
        return f"not even {digits(max(probes))} replicas keep the SLO"
    ends = {at: bool(metrics["slo.met"]) for at, metrics in probes.items()}
    if any(ends.values()):
        return f"no rate breaks the SLO, up to {2**DOUBLINGS:,} times that of the trace: it is too short to"
    return f"no rate keeps the SLO, down to 1/{2**DOUBLINGS:,} of that of the trace"


def _variant(answer: Answer) -> str:
    return ", ".join(f"{key} = {value}" for key, value in answer.setting.items()) or "as in the scenario"
