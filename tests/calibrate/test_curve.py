"""Interpolation: exact on the grid, linear between, never falling beyond, scalar and array alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.curve import Curve, Surface, add

times = st.floats(1e-6, 1.0)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    xs = sorted(draw(st.sets(st.integers(0, 4096), min_size=1, max_size=12)))
    return Curve(xs, [draw(times) for _ in xs])


@given(curves())
def test_exact_on_the_grid(curve: Curve) -> None:
    assert [curve(x) for x in curve.xs] == curve.ys


@given(curves(), st.data())
def test_between_neighbours_and_linear(curve: Curve, data: st.DataObject) -> None:
    if len(curve.xs) < 2:
        return
    cell = data.draw(st.integers(0, len(curve.xs) - 2))
    share = data.draw(st.floats(0, 1))
    x = curve.xs[cell] + share * (curve.xs[cell + 1] - curve.xs[cell])
    expected = curve.ys[cell] + share * (curve.ys[cell + 1] - curve.ys[cell])
    assert curve(x) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(curves(), st.lists(st.integers(0, 10000), min_size=1, max_size=50).map(sorted))
def test_many_is_one_by_one_bit_for_bit(curve: Curve, xs: list[int]) -> None:
    assert curve.many(np.array(xs, dtype=float)).tolist() == [curve(x) for x in xs]


@given(curves(), st.integers(1, 10**6))
def test_never_falls_beyond_the_grid(curve: Curve, beyond: int) -> None:
    assert curve(curve.high + beyond) >= curve.ys[-1]
    assert not curve.covers(curve.high + beyond) and curve.covers(curve.high)


@given(curves(), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 10_000))
def test_at_least_and_plus_hold_everywhere(curve: Curve, least: float, constant: float, x: int) -> None:
    assert curve.at_least(least)(x) == pytest.approx(max(curve(x), least), rel=1e-9, abs=1e-9)
    assert curve.plus(constant)(x) == pytest.approx(curve(x) + constant, rel=1e-9, abs=1e-9)
    assert curve.at_least(least).covers(x) == curve.plus(constant).covers(x) == curve.covers(x)


@given(st.lists(st.tuples(st.integers(1, 64), curves()), min_size=1, max_size=4), st.integers(0, 4096))
def test_sum_of_curves_is_the_sum_at_every_x(weighted: list[tuple[float, Curve]], x: int) -> None:
    low, high = min(c.low for _, c in weighted), max(c.high for _, c in weighted)
    x = int(min(max(x, low), high))
    assert add(weighted)(x) == pytest.approx(sum(w * c(x) for w, c in weighted), rel=1e-9, abs=1e-9)


@given(st.dictionaries(st.integers(1, 64), curves(), min_size=1, max_size=5), st.integers(1, 80), st.integers(0, 5000))
def test_surface_agrees_with_its_curve_at_a_row(rows: dict[float, Curve], row: int, x: int) -> None:
    surface = Surface(rows)
    for key, curve in rows.items():
        assert [surface(key, at) for at in curve.xs] == curve.ys
    inside = surface.keys[0] <= row <= surface.keys[-1]
    low, high = surface.cell(row)
    if inside and surface.curves[low].covers(x) and surface.curves[high].covers(x):
        assert surface.at(row)(x) == pytest.approx(surface(row, x), rel=1e-9, abs=1e-12)


def test_surface_follows_its_work_between_and_beyond_rows() -> None:
    """A law that is linear in work is met exactly, however far apart the rows."""

    def work(chunk: float, cached: float) -> float:
        return chunk * cached + chunk * (chunk + 1) / 2

    def law(chunk: float, cached: float) -> float:
        return 3e-6 + 2e-9 * work(chunk, cached)

    contexts = [0, 1000]
    rows: dict[float, Curve] = {c: Curve(contexts, [law(c, kv) for kv in contexts]) for c in (1, 100, 1000)}
    surface = Surface(rows, work)
    for chunk, cached in [(1, 0), (37, 500), (100, 1000), (640, 321), (4000, 2500)]:
        assert surface(chunk, cached) == pytest.approx(law(chunk, cached), rel=1e-12)
    assert surface.covers(640, 321) and not surface.covers(4000, 10) and not surface.covers(10, 1001)


def test_leave_one_out_is_nought_on_a_line_and_sees_a_bend() -> None:
    assert Curve([1, 2, 5, 9], [2, 4, 10, 18]).leave_one_out() == pytest.approx([0, 0])
    assert Curve([0, 1, 2], [1, 1, 3]).leave_one_out() == pytest.approx([1.0])


@pytest.mark.parametrize(("xs", "ys"), [([], []), ([1, 1], [1, 2]), ([2, 1], [1, 2]), ([1], [1, 2])])
def test_a_grid_must_rise(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(ValueError, match="rising"):
        Curve(xs, ys)
