"""A profile as an HTML page: its errors, and where its kernels stand under the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.model import ModelShape
from calibrate.profile import Profile
from calibrate.roofline import Work, decode_work, layer_work, prefill_work
from ground.page import Page, Tone

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# A whole-step prediction this close is within what a measured run repeats to.
_GOOD_STEP_ERROR = 0.05


def write_picture(profile: Profile, path: Path) -> None:
    """Write the page. Its ceilings are the best FLOP/s and bytes/s that any kernel of the profile reached."""
    page = Page(
        f"{profile.shape.name} on {profile.device}",
        f"tp {profile.tp}, {profile.dtype}; {profile.provenance.note}; {profile.date}",
    )
    step = profile.errors.get("step", {}).get("held_out_median")
    if step is not None:
        tone: Tone = "good" if step <= _GOOD_STEP_ERROR else "bad"
        p90 = profile.errors["step"]["held_out_p90"]
        page.numbers([("whole steps, median error", f"{step:.1%}", tone), ("90th percentile", f"{p90:.1%}", "plain")])
    page.heading("Roofline")
    page.figure(
        _roofline(profile),
        "Each point is one measured kernel call; the lines are the best FLOP/s and bytes/s reached by any of them.",
        height=460,
    )
    if profile.held_out is not None and len(profile.held_out):
        page.heading("Held-out points: measured against predicted")
        page.figure(_held_out(profile), "On the line the prediction is exact. None of these points is in the tables.")
    if profile.errors:
        page.heading("Errors by kernel class")
        keys = ("fit", "held_out_median", "held_out_p90")
        rows = [
            [name, *(f"{error[key]:.1%}" if key in error else "–" for key in keys)]
            for name, error in profile.errors.items()
        ]
        page.table(["class", "fit", "held-out median", "held-out 90th percentile"], rows)
    page.write(path)


def measured_work(profile: Profile) -> dict[str, list[tuple[Work, float]]]:
    """Kernel → (work, seconds) of one call at every point that does arithmetic: linear layers and attention."""
    rank: ModelShape = profile.shape.shard(profile.tp)
    linears = {linear.name for linear in rank.linears()}
    kernels: dict[str, list[tuple[Work, float]]] = {}
    for kernel_class, axis in (("dense", "tokens"), ("per_sequence", "sequences")):
        for row in profile.table(kernel_class).iter_rows(named=True):
            if row["layer"] in linears:
                point = layer_work(rank, row["layer"], row[axis]), row["seconds"]
                kernels.setdefault(row["layer"], []).append(point)
    for row in profile.table("attention").iter_rows(named=True):
        if row["n_decode"] == 0:
            work = prefill_work(rank, row["prefill_chunk"], row["kv_prefill"])
            kernels.setdefault("attention, prefill", []).append((work, row["seconds"]))
        elif row["prefill_chunk"] == 0:
            work = decode_work(rank, row["n_decode"], row["kv_decode"])
            kernels.setdefault("attention, decode", []).append((work, row["seconds"]))
    return kernels


def _roofline(profile: Profile) -> Figure:
    import plotly.graph_objects as go

    kernels = measured_work(profile)
    points = [point for series in kernels.values() for point in series]
    peak = max(work.flops / seconds for work, seconds in points)
    bandwidth = max(work.bytes / seconds for work, seconds in points)
    figure = go.Figure()
    intensities = [work.flops / work.bytes for work, _ in points]
    low, high, ridge = min(intensities), max(intensities), peak / bandwidth
    xs = sorted({low, min(max(ridge, low), high), high})
    figure.add_scatter(
        x=xs, y=[min(peak, bandwidth * x) for x in xs], mode="lines", line_color="#555555", name="best reached"
    )
    for name, series in kernels.items():
        figure.add_scatter(
            x=[work.flops / work.bytes for work, _ in series],
            y=[work.flops / seconds for work, seconds in series],
            mode="markers",
            marker_size=6,
            name=name,
        )
    figure.update_xaxes(type="log", title="FLOPs per byte")
    figure.update_yaxes(type="log", title="FLOP/s")
    return figure


def _held_out(profile: Profile) -> Figure:
    import plotly.graph_objects as go

    assert profile.held_out is not None
    figure = go.Figure()
    both = [*profile.held_out["measured"], *profile.held_out["predicted"]]
    ends = [min(both) * 1e3, max(both) * 1e3]
    figure.add_scatter(x=ends, y=ends, mode="lines", line_color="#555555", name="exact")
    for (kernel_class,), rows in profile.held_out.group_by("kernel_class", maintain_order=True):
        figure.add_scatter(
            x=rows["measured"] * 1e3,
            y=rows["predicted"] * 1e3,
            mode="markers",
            text=rows["point"],
            name="whole steps" if kernel_class == "step" else str(kernel_class),
        )
    figure.update_xaxes(type="log", title="measured, ms")
    figure.update_yaxes(type="log", title="predicted, ms")
    return figure
