"""The draws of `make test` follow from the tests' code alone: not from chance, nor from what else has been loaded."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

NUMBERS = range(700_000, 700_400)


def drawn() -> list[int]:
    found: list[int] = []

    @given(st.integers(0, 1_000_000))
    def draw(number: int) -> None:
        found.append(number)

    draw()
    return found


def test_draws_are_the_same_whatever_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not settings.default.derandomize:
        pytest.skip("fresh draws were asked for")
    before = drawn()
    assert len(before) == settings.default.max_examples == len(drawn())
    path = tmp_path / "loaded.py"
    path.write_text(f"NUMBERS = {list(NUMBERS)}")
    spec = importlib.util.spec_from_file_location("loaded", path)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "loaded", importlib.util.module_from_spec(spec))
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", type(providers.CONSTANTS_CACHE)(1024))
    assert drawn() == before
