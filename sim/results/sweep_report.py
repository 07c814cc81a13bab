"""The page of a sweep: what the winner gains over the baseline, the Pareto fronts, what each parameter does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ground.page import PALETTE, Page, Tone
from sim.results.charts import latency_axis
from sim.results.display import UNKNOWN, metric_text, seconds, share
from sim.results.metric_names import LATENCIES, METRICS, describe
from sim.results.pareto import FRONTS
from sim.results.slo import Slo

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_HEADLINES = (
    "goodput.requests",
    "cost.per_million_output_tokens",
    "ttft.p99",
    "tpot.p99",
    "e2e.p99",
    "throughput.output_tokens",
    "slo.attainment",
    "preemptions",
    "kv.peak",
    "prefix_hit_rate",
)
_EFFECTS = ("goodput.requests", "ttft.p99")
_MOST_ROWS = 200
_MOST_CATEGORIES = 12


def write_sweep_report(
    points: pl.DataFrame,
    *,
    parameters: Sequence[str],
    pareto: Mapping[str, Sequence[int]],
    winners: Sequence[int],
    baseline: int | None,
    slo: Slo,
    path: Path,
    quality: Mapping[int, str | None] | None = None,
    title: str = "Sweep",
) -> None:
    """Write the sweep's report as one self-contained HTML file at `path`.

    Args:
        points: a row a point: `point` (its id), one column a parameter, `status` ("ok" or "failed"), `error`, and
            metrics by their dotted names; a metric may be missing.
        parameters: the parameters' column names (dotted scenario keys).
        pareto: for each of `pareto.FRONTS`, the ids on it, as `pareto.sweep_fronts` gives them.
        winners: ids, best first; empty if no point meets the SLO.
        baseline: id of the point to compare with, if the study has one.
        quality: of winners and baseline by id, what the pruning of the model costs; null where nothing is pruned.
    """
    ok = points.filter(pl.col("status") == "ok")
    failed = points.filter(pl.col("status") != "ok").sort("point")
    by_id = {row["point"]: row for row in points.iter_rows(named=True)}
    marks = _marks(pareto, winners, baseline)

    page = Page(title, _lead(points, failed, slo))
    if winners:
        page.numbers(_tiles(by_id[winners[0]], by_id.get(baseline)))
    else:
        best: Any = ok["slo.attainment"].max() if "slo.attainment" in ok.columns else None
        page.numbers([("no point meets the SLO; best attainment", metric_text("slo.attainment", best), "bad")])
    compared = {f"winner {rank}": by_id[point] for rank, point in enumerate(winners[:3], 1)}
    if baseline is not None:
        compared = {"baseline": by_id[baseline], **compared}
    if compared:
        _comparison(page, compared, parameters, quality or {})

    page.heading("Pareto fronts")
    for name, ids in pareto.items():
        if ids:
            figure = _front_chart(ok, parameters, *FRONTS[name], front=ids, winners=winners, baseline=baseline)
            page.figure(figure, f"{name}: no point is better in both than one on the line.", height=400)
        else:
            missing = " and ".join(METRICS[metric].label for metric in FRONTS[name])
            page.text(f"{name}: not drawn, because no point has both {missing}.")

    varied = [name for name in parameters if ok[name].n_unique() > 1]
    if varied:
        page.heading("What each parameter does")
    for name in varied:
        figure = _effect_chart(ok, name, parameters, winners=winners, baseline=baseline)
        page.figure(figure, f"Every point by its {name}; a line joins the medians of few values.", height=440)

    page.heading("Points")
    _points_table(page, ok, parameters, marks)
    if len(failed):
        page.heading("Failed points")
        rows = [
            [str(row["point"]), *(_text(row[name]) for name in parameters), _text(row["error"])]
            for row in failed.head(_MOST_ROWS).iter_rows(named=True)
        ]
        page.table(["point", *parameters, "error"], rows, _rest(len(failed)))
    if compared:
        page.heading("Every metric of the winners")
        _metrics_table(page, compared, METRICS)
    page.write(path)


def _lead(points: pl.DataFrame, failed: pl.DataFrame, slo: Slo) -> str:
    limits = ", ".join(f"{LATENCIES[name]} ≤ {seconds(limit)}" for name, limit in slo.limits.items())
    objective = f"{share(slo.attainment)} of requests must finish" + (f" with {limits}" if limits else "")
    return f"{len(points):,} points, {len(failed):,} failed. SLO: {objective}."


def _marks(pareto: Mapping[str, Sequence[int]], winners: Sequence[int], baseline: int | None) -> dict[int, str]:
    """What is special about a point, in words for the table."""
    marks: dict[int, list[str]] = {}
    if baseline is not None:
        marks.setdefault(baseline, []).append("baseline")
    for rank, point in enumerate(winners, 1):
        marks.setdefault(point, []).append(f"winner {rank}")
    for point in sorted({point for ids in pareto.values() for point in ids}):
        marks.setdefault(point, []).append("front")
    return {point: ", ".join(words) for point, words in marks.items()}


def _tiles(winner: dict[str, Any], baseline: dict[str, Any] | None) -> list[tuple[str, str, Tone]]:
    """The winner's numbers beside the baseline's, in the tone of which is better."""
    tiles: list[tuple[str, str, Tone]] = [("winner", f"point {winner['point']}", "plain")]
    for name in _HEADLINES:
        value = winner.get(name)
        if value is None:
            continue
        before = baseline.get(name) if baseline else None
        label = METRICS[name].label + (f"; baseline {metric_text(name, before)}" if before is not None else "")
        tiles.append((label, metric_text(name, value), _tone(name, value, before)))
    return tiles


def _tone(name: str, value: float, before: float | None) -> Tone:
    better = describe(name).better
    if before is None or value == before or better == "neither":
        return "plain"
    return "good" if (value < before) == (better == "smaller") else "bad"


def _comparison(
    page: Page,
    compared: Mapping[str, dict[str, Any]],
    parameters: Sequence[str],
    quality: Mapping[int, str | None],
) -> None:
    rows = [[name, *(_text(row[name]) for row in compared.values())] for name in ("point", *parameters)]
    costs = [quality.get(row["point"]) for row in compared.values()]
    if any(costs):
        rows.append(["quality of the pruned model", *(_text(cost) for cost in costs)])
    page.table(["parameter", *compared], rows)
    _metrics_table(page, compared, _HEADLINES)


def _metrics_table(page: Page, compared: Mapping[str, dict[str, Any]], names: Iterable[str]) -> None:
    known = [name for name in names if any(row.get(name) is not None for row in compared.values())]
    page.table(
        ["metric", *compared],
        [[METRICS[name].label, *(metric_text(name, row.get(name)) for row in compared.values())] for name in known],
    )


def _front_chart(
    ok: pl.DataFrame,
    parameters: Sequence[str],
    x: str,
    y: str,
    *,
    front: Sequence[int],
    winners: Sequence[int],
    baseline: int | None,
) -> Figure:
    from plotly.graph_objects import Figure

    known = ok.drop_nulls([x, y])
    on_front = known.filter(pl.col("point").is_in(list(front))).sort(x, y)
    figure = Figure()
    figure.add_scatter(
        x=on_front[x].to_list(),
        y=on_front[y].to_list(),
        name="front",
        mode="lines",
        line={"color": PALETTE[0], "width": 1.5},
        hoverinfo="skip",
    )
    _add_points(figure, known, x, y, parameters, winners=winners, baseline=baseline)
    _metric_axis(figure.update_xaxes, known[x])
    _metric_axis(figure.update_yaxes, known[y])
    return figure


def _effect_chart(
    ok: pl.DataFrame, parameter: str, parameters: Sequence[str], *, winners: Sequence[int], baseline: int | None
) -> Figure:
    """Goodput and TTFT p99 of every point over one parameter: as categories if it took few values."""
    from plotly.subplots import make_subplots

    numeric = ok.schema[parameter].is_numeric()
    few = not numeric or ok[parameter].n_unique() <= _MOST_CATEGORIES
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, metric in enumerate((name for name in _EFFECTS if name in ok.columns), 1):
        known = ok.drop_nulls([metric]).sort(parameter, "point")
        values = known[parameter].to_list()
        placed = known.with_columns(pl.Series("at", [_text(value) for value in values] if few else values))
        if few:
            medians = placed.group_by("at", maintain_order=True).agg(pl.col(metric).median())
            figure.add_scatter(
                x=medians["at"].to_list(),
                y=medians[metric].to_list(),
                name="median",
                mode="lines",
                line={"color": PALETTE[0], "width": 1.5},
                showlegend=row == 1,
                row=row,
                col=1,
            )
        _add_points(figure, placed, "at", metric, parameters, winners=winners, baseline=baseline, row=row)
        _metric_axis(figure.update_yaxes, placed[metric], row=row, col=1)
    if few:
        figure.update_xaxes(type="category")
    return figure.update_xaxes(title=parameter, row=2, col=1)


def _add_points(
    figure: Figure,
    rows: pl.DataFrame,
    x: str,
    y: str,
    parameters: Sequence[str],
    *,
    winners: Sequence[int],
    baseline: int | None,
    row: int | None = None,
) -> None:
    """All points in grey, over them the winners and the baseline; the pointer shows a point's parameters."""
    cell = {} if row is None else {"row": row, "col": 1}
    groups = (
        ("point", rows, {"color": "#98a2ab", "size": 7, "opacity": 0.7}),
        (
            "winner",
            rows.filter(pl.col("point").is_in(list(winners))),
            {"color": PALETTE[2], "size": 13, "symbol": "star"},
        ),
        (
            "baseline",
            rows.filter(pl.col("point") == baseline) if baseline is not None else rows.clear(),
            {"color": PALETTE[1], "size": 11, "symbol": "diamond"},
        ),
    )
    for name, group, marker in groups:
        if len(group):
            figure.add_scatter(
                x=group[x].to_list(),
                y=group[y].to_list(),
                name=name,
                mode="markers",
                marker=marker,
                text=[_hover(point, parameters) for point in group.iter_rows(named=True)],
                hovertemplate="%{text}<br>%{x}, %{y}<extra></extra>",
                showlegend=row in (None, 1),
                **cell,
            )


def _hover(point: dict[str, Any], parameters: Sequence[str]) -> str:
    lines = [f"point {point['point']}", *(f"{name} = {_text(point[name])}" for name in parameters)]
    # Plotly reads a few tags in its texts; a value must not be one.
    return "<br>".join(line.replace("<", "&lt;") for line in lines)


def _metric_axis(update: Any, values: pl.Series, **cell: int) -> None:
    """Title and ticks for the metric whose name the series bears."""
    metric = METRICS[values.name]
    if metric.unit == "s":
        update(title=metric.label, **latency_axis([values.to_numpy()]), **cell)
    elif metric.unit == "share":
        update(title=metric.label, tickformat=".0%", **cell)
    else:
        title = f"{metric.label}<br>({metric.unit})" if "/" in metric.unit else metric.label
        update(title=title, hoverformat=".4~g", **cell)


def _points_table(page: Page, ok: pl.DataFrame, parameters: Sequence[str], marks: Mapping[int, str]) -> None:
    """Points that meet the SLO first, then by goodput, at most 200 of them."""
    keys = [name for name in ("slo.met", "goodput.requests") if name in ok.columns]
    ordered = ok.sort(*keys, "point", descending=[True] * len(keys) + [False], nulls_last=True)
    shown = [name for name in ("slo.met", *_HEADLINES) if name in ok.columns and ok[name].count()]
    rows = [
        [
            str(row["point"]),
            marks.get(row["point"], ""),
            *(_text(row[name]) for name in parameters),
            *(metric_text(name, row[name]) for name in shown),
        ]
        for row in ordered.head(_MOST_ROWS).iter_rows(named=True)
    ]
    page.table(["point", "", *parameters, *(METRICS[name].label for name in shown)], rows, _rest(len(ok)))


def _rest(total: int) -> str:
    return f"The first {_MOST_ROWS} of {total:,}; all are in points.parquet." if total > _MOST_ROWS else ""


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)
