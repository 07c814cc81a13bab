"""Gains on a page: how many held, then each in a table, what was copied, and what was not replayed."""

from __future__ import annotations

from collections.abc import Sequence

from ground.page import Page, Tone
from validate.gain_rows import COPY_HEADER, HEADER, copy_rows, gain_row
from validate.gains import Gain, Verdict

_TILES: tuple[tuple[Verdict, str, Tone], ...] = (
    ("other sign", "gain measured with the other sign", "bad"),
    ("as predicted", "gain measured with the predicted sign", "good"),
    ("no difference", "no difference beyond the repeats' spread", "plain"),
)


def gain_tiles(found: Sequence[Gain]) -> list[tuple[str, str, Tone]]:
    """How many gains went the other way, were none, and held."""
    tiles: list[tuple[str, str, Tone]] = []
    for verdict, label, tone in _TILES:
        count = sum(gain.verdict == verdict for gain in found)
        tiles.append((f"policies: {label}", f"{count} of {len(found)}", tone if count else "plain"))
    return tiles


def add_gains(page: Page, found: Sequence[Gain], refused: Sequence[tuple[str, str, str]]) -> None:
    """The table of all gains, of what was copied, and of (study, policy, reason) that no engine ran."""
    page.heading("Did the winners win?")
    page.table(
        list(HEADER),
        [gain_row(gain) for gain in found],
        "Gain over the study's baseline, as a share of its value; first those measured with the other sign. Measured: "
        "mean of the repeats, each against the baseline's repeat beside it; spread: largest less smallest. A gain "
        "within the spread is no difference. Order: whether this policy and another were measured the other way round.",
    )
    if rows := [row for gain in found for row in copy_rows(gain)]:
        page.heading("What was copied")
        page.table(list(COPY_HEADER), rows, "KV blocks; measured: mean of the repeats.")
    if refused:
        page.heading("Not replayed")
        page.table(["study", "policy", "why"], [list(row) for row in refused])
