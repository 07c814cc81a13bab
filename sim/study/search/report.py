"""The page of a search: what the winners gain and how sure that is, the front, and what was not simulated and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ground.page import PALETTE, Page, Tone
from sim.results.charts import latency_axis
from sim.results.display import UNKNOWN, digits, share
from sim.study.intervals import Interval, share_at_most
from sim.study.search.comparison import broken, comparisons, seeds_draw_nothing, shown_metrics
from sim.study.search.explore import BASELINE, Found
from sim.study.search.objectives import metric_named, value_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_ROWS = 200
_TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}


def write_search_report(found: Found, points: pl.DataFrame, path: Path) -> None:
    """Write the page of a finished search; `points` is `results.points_table`."""
    study = found.study
    page = Page("Search", _lead(found))
    page.numbers(_tiles(found))
    page.heading("Winners against the baseline, under seeds that the search had not seen")
    _comparison(page, found)
    ok = points.filter(pl.col("status") == "ok")
    names = [each.metric for each in study.wanted]
    if len(names) > 1:
        page.heading("Pareto front")
        for other in names[1:]:
            page.figure(
                _front_figure(found, ok, names[0], other),
                "Points that keep to the constraints are filled; of these none is better in every objective than one "
                "on the line. Bars at winners: interval over the fresh seeds.",
                height=420,
            )
    elif len(ok):
        page.heading("The search's course")
        page.figure(_course_figure(found, names[0]), "Each point in the order in which it was proposed, and the best.")
    page.heading("Points")
    _points_table(page, found, ok, [number for number in found.front if number not in found.winners])
    _not_simulated(page, found, points)
    page.heading("How it was searched")
    for line in _how(found):
        page.text(line)
    page.write(path)


def outcome(found: Found) -> list[tuple[str, ...]]:
    """A row a comparison: who, against whom, metric, value, that of the other, difference, verdict."""
    names = {number: f"winner {place}" for place, number in enumerate(found.winners, 1)} | (
        {BASELINE: "baseline"} if BASELINE not in found.winners else {}
    )
    return [
        (
            names[row.trial],
            names[row.other],
            metric_named(row.metric).label,
            interval_text(row.metric, row.one),
            interval_text(row.metric, row.against),
            change_text(row.metric, row.change),
            row.verdict,
        )
        for row in comparisons(found)
    ]


def interval_text(name: str, interval: Interval) -> str:
    """A value, and behind it the half width of its interval where there is one."""
    if interval.half is None:
        return value_text(name, interval.mean)
    return f"{value_text(name, interval.mean)} ± {value_text(name, interval.half)}"


def change_text(name: str, interval: Interval) -> str:
    sign = "+" if interval.mean > 0 else ""
    return sign + interval_text(name, interval)


def setting_text(setting: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {_text(value)}" for key, value in setting.items()) or "as in the scenario"


def _lead(found: Found) -> str:
    study = found.study
    limits = "; ".join(str(limit) for limit in study.limits) or "none"
    return (
        f"{', '.join(str(each) for each in study.wanted)}. Constraints: {limits}. "
        f"{len(found.trials):,} points, each under {study.seeds} seed{'s' * (study.seeds > 1)}"
        + (f" and {len(study.traces)} traces." if len(study.traces) > 1 else ".")
    )


def _tiles(found: Found) -> list[tuple[str, str, Tone]]:
    if not found.winners:
        return [("no point keeps to the constraints", "none", "bad")]
    first = found.winners[0]
    tiles: list[tuple[str, str, Tone]] = [
        ("winner", "the baseline" if first == BASELINE else f"point {first}", "plain")
    ]
    if len(found.study.wanted) > 1:
        tiles.append(("points on the front", str(len(found.front)), "plain"))
    for row in comparisons(found):
        if row.trial == first and row.other == BASELINE:
            tone: Tone = _TONES.get(row.verdict, "plain")
            label = f"{metric_named(row.metric).label}; baseline {value_text(row.metric, row.against.mean)}"
            tiles.append((f"{label}: {row.verdict}", interval_text(row.metric, row.one), tone))
    return tiles


def _comparison(page: Page, found: Found) -> None:
    if not found.winners:
        page.text("There is no winner to compare.")
        return
    rows = outcome(found)
    level = share(found.study.confidence).replace(".0 %", " %")
    page.table(
        ["", "against", "metric", "value", "of the other", "difference", "verdict"],
        rows,
        f"± is the half width of the {level} interval over the seeds (Student). A difference is that of pairs with "
        "the same trace; one whose interval holds zero is no difference.",
    )
    page.table(
        ["", "point", "setting"],
        [
            (f"winner {place}", str(number), setting_text(found.trials[number].setting))
            for place, number in enumerate(found.winners, 1)
        ],
    )
    for place, number in enumerate(found.winners, 1):
        if missed := broken(found, number):
            page.text(f"Winner {place} misses {', '.join(missed)} under the fresh seeds.")
    if found.study.seeds == 1:
        page.text("One seed says nothing of others: no interval, and no verdict.")
    elif seeds_draw_nothing(found):
        page.text("Every seed gives the same: the trace is a file. The intervals say nothing of another trace.")


def _front_figure(found: Found, ok: pl.DataFrame, x: str, y: str) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    kept = ok.filter(pl.col("constraints.kept"))
    for name, rows, marker in (
        ("breaks a constraint", ok.filter(~pl.col("constraints.kept")), {"color": "#98a2ab", "symbol": "circle-open"}),
        ("point", kept, {"color": "#98a2ab", "size": 7}),
        ("baseline", ok.filter(pl.col("point") == BASELINE), {"color": PALETTE[1], "size": 11, "symbol": "diamond"}),
    ):
        texts = [f"point {number}" for number in rows["point"]]
        figure.add_scatter(
            x=rows[x].to_list(), y=rows[y].to_list(), name=name, mode="markers", marker=marker, text=texts
        )
    line = ok.filter(pl.col("point").is_in(found.front)).sort(x)
    figure.add_scatter(
        x=line[x].to_list(), y=line[y].to_list(), name="front", mode="lines+markers", line={"color": PALETTE[0]}
    )
    winners = [found.fresh[number] for number in found.winners if found.fresh[number].status == "ok"]
    bars = [[trial.interval(name, found.study.confidence) for trial in winners] for name in (x, y)]
    means, halves = (
        [[getattr(bar, part, None) for bar in axis] for axis in bars]  # a value may be missing under a fresh seed
        for part in ("mean", "half")
    )
    figure.add_scatter(
        x=means[0],
        y=means[1],
        error_x={"array": halves[0]},
        error_y={"array": halves[1]},
        name="winner, fresh seeds",
        mode="markers",
        marker={"color": PALETTE[2], "size": 13, "symbol": "star"},
    )
    figure.update_xaxes(title=_axis(x), **_ticks(x, ok))
    return figure.update_yaxes(title=_axis(y), **_ticks(y, ok))


def _course_figure(found: Found, name: str) -> Figure:
    from plotly.graph_objects import Figure

    objective = found.study.wanted[0]
    ok = {number: trial for number, trial in found.trials.items() if trial.status == "ok"}
    best: list[float | None] = []
    for trial in ok.values():
        costs = [objective.cost(value) for value in best[-1:] if value is not None]
        if not any(trial.violations(found.study.limits).values()):
            costs.append(objective.cost(trial.mean(name)))
        best.append(objective.cost(min(costs)) if costs else None)
    figure = Figure()
    figure.add_scatter(
        x=list(ok), y=[trial.mean(name) for trial in ok.values()], name="point", mode="markers",
        marker={"color": "#98a2ab", "size": 7},
    )  # fmt: skip
    figure.add_scatter(
        x=list(ok), y=best, name="best that keeps to the constraints", mode="lines",
        line={"color": PALETTE[0], "shape": "hv"},
    )  # fmt: skip
    figure.update_xaxes(title="point")
    values = pl.DataFrame({name: [trial.mean(name) for trial in ok.values()]})
    return figure.update_yaxes(title=_axis(name), **_ticks(name, values))


def _points_table(page: Page, found: Found, ok: pl.DataFrame, front: Sequence[int]) -> None:
    marks = {number: f"winner {place}" for place, number in enumerate(found.winners, 1)}
    marks |= dict.fromkeys(front, "front")
    first = [*found.winners, *front]
    others = [number for number in ok["point"].to_list() if number not in first]
    rows = []
    for number in (first + others)[:_MOST_ROWS]:
        trial = found.trials[number]
        values = [trial.interval(name, found.study.confidence) for name in shown_metrics(found)]
        texts = [
            UNKNOWN if value is None else interval_text(name, value)
            for name, value in zip(shown_metrics(found), values, strict=True)
        ]
        missed = any(trial.violations(found.study.limits).values())
        mark = marks.get(number, "baseline" if number == BASELINE else "")
        kept = "no" if missed else "yes"
        rows.append(
            [str(number), mark, *(_text(trial.setting.get(key)) for key in found.study.parameters), kept, *texts]
        )
    labels = [metric_named(name).label for name in shown_metrics(found)]
    header = ["point", "", *found.study.parameters, "keeps to the constraints", *labels]
    rest = f"The first {_MOST_ROWS} of {len(ok):,}; all are in points.parquet." if len(ok) > _MOST_ROWS else ""
    page.table(header, rows, rest)


def _not_simulated(page: Page, found: Found, points: pl.DataFrame) -> None:
    for status, title in (
        ("refused", "Refused before they were simulated"),
        ("failed", "Failed"),
        ("stopped", "Stopped early"),
    ):
        numbers = points.filter(pl.col("status") == status)["point"].to_list()
        if not numbers:
            continue
        page.heading(title)
        rows = []
        for number in numbers[:_MOST_ROWS]:
            trial = found.trials[number]
            said = trial.error or f"not among the best of its batch on the first {share(trial.share)} of the requests"
            rows.append([str(number), setting_text(trial.setting), said])
        page.table(["point", "setting", "why"], rows)


def _how(found: Found) -> list[str]:
    study = found.study
    lines = [
        "The space was small enough to be tried whole."
        if found.whole
        else f"{study.method} proposed {study.batch} settings at a time, seed {study.seed}.",
        "Every point had the same seeds and so the same traces: what falls to one falls to all.",
    ]
    stopped = sum(trial.status == "stopped" for trial in found.trials.values()) + len(found.audited)
    base = found.trials[BASELINE]
    if study.stop_early is not None and base.status == "ok":
        whole = base.requests * (len(found.trials) - 1)
        lines.append(
            f"{stopped} points were stopped early. {digits(found.requests)} requests were simulated, where all points "
            f"to their end would have taken {digits(whole)}."
        )
    if found.audited:
        limit = share_at_most(len(found.missed), len(found.audited), study.confidence)
        level = share(study.confidence).replace(".0 %", " %")
        lines.append(
            f"{len(found.audited)} of the stopped, drawn at random, were simulated whole afterwards: "
            f"{len(found.missed)} would have won. At {level} confidence at most {share(limit)} of all stopped would "
            "have."
        )
    elif stopped:
        lines.append("How often a stopped point would have won is not known: stop_early.audit is 0.")
    return lines


def _axis(name: str) -> str:
    metric = metric_named(name)
    return metric.label if metric.unit in ("s", "share", "yes/no") else f"{metric.label} ({metric.unit})"


def _ticks(name: str, rows: pl.DataFrame) -> dict[str, Any]:
    """Of a latency, which may span decades."""
    return latency_axis([rows[name].to_numpy()]) if metric_named(name).unit == "s" else {}


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)
