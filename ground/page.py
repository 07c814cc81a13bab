"""One self-contained HTML page: numbers first, then tables and pictures; opens offline, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Tone = Literal["plain", "good", "bad"]

# One palette for every picture, distinguishable with the common colour-vision deficiencies (Okabe and Ito, 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#555555")

_STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #5b6670; --line: #dfe4e8; --good: #00795a; --bad: #b3390b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 20px 16px 48px; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 32px 0 8px; }
p { margin: 6px 0; } .lead, .caption { color: var(--soft); } .caption { font-size: .875rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 16px 0; }
.number { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.number b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.number span { color: var(--soft); font-size: .8125rem; }
.number.good b { color: var(--good); } .number.bad b { color: var(--bad); }
.scroll { overflow-x: auto; margin: 8px 0 16px; }
table { border-collapse: collapse; font-size: .875rem; min-width: 50%; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } .right { text-align: right; }
td.wrap { white-space: normal; min-width: 260px; }
.figure { width: 100%; }
/* A finger scrolls the page; it must not be caught by a picture's zoom. */
@media (hover: none) { .modebar-container { display: none; } .draglayer { pointer-events: none; } }
footer { margin-top: 40px; color: var(--soft); font-size: .8125rem; }
"""

# Every picture's look. Plotly's own templates style fifty kinds of trace, and each figure copies all of them.
_AXIS = {"gridcolor": "#EBF0F8", "linecolor": "#EBF0F8", "zerolinecolor": "#EBF0F8", "automargin": True}
_TEMPLATE = {"layout": {"xaxis": _AXIS, "yaxis": _AXIS}}
_LOOK = {
    "plot_bgcolor": "white",
    "colorway": list(PALETTE),
    "margin": {"l": 56, "r": 16, "t": 40, "b": 48},
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#2a3f5f"},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
}

_RIGHT = ' class="right"'


def _mostly_numbers(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return 2 * sum(cell[0] in "0123456789+-−–." for cell in filled) > len(filled)


class Page:
    """Collects blocks in reading order and writes them as one file. All text is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._blocks: list[str] = []
        self._figures = 0
        if lead:
            self._blocks.append(f'<p class="lead">{escape(lead)}</p>')

    def heading(self, text: str) -> None:
        self._blocks.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._blocks.append(f"<p>{escape(text)}</p>")

    def numbers(self, numbers: Sequence[tuple[str, str, Tone]]) -> None:
        """A row of tiles; each is (label, value, tone)."""
        tiles = "".join(
            f'<div class="number {tone}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for label, value, tone in numbers
        )
        self._blocks.append(f'<div class="numbers">{tiles}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
        """A table whose columns of numbers are right-aligned, the first column and those of text left-aligned."""
        right = [i > 0 and _mostly_numbers([row[i] for row in rows]) for i in range(len(header))]
        head = "".join(f"<th{_RIGHT * at}>{escape(cell)}</th>" for cell, at in zip(header, right, strict=True))
        body = "".join(
            "<tr>"
            + "".join(
                f'<td class="wrap">{escape(cell)}</td>' if len(cell) > 40 else f"<td{_RIGHT * at}>{escape(cell)}</td>"
                for cell, at in zip(row, right, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        self._blocks.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        self._caption(caption)

    def figure(self, figure: Figure, caption: str = "", *, height: int = 360) -> None:
        """A plotly figure; its width follows the window."""
        import plotly.io

        figure.layout.template = _TEMPLATE
        figure.update_layout(_LOOK, height=height)
        html = plotly.io.to_html(
            figure,
            full_html=False,
            include_plotlyjs=False,
            config={"responsive": True, "displaylogo": False},
            div_id=f"figure-{self._figures}",  # plotly would draw a random one, and equal runs give unequal pages
        )
        self._figures += 1
        self._blocks.append(f'<div class="figure">{html}</div>')
        self._caption(caption)

    def write(self, path: Path) -> None:
        script = ""
        if self._figures:
            from plotly.offline import get_plotlyjs

            script = f"<script>{get_plotlyjs()}</script>"
        title = escape(self.title)
        # The empty icon stops the browser from asking the network for one.
        path.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{_STYLE}</style>{script}</head>'
            f"<body><h1>{title}</h1>{''.join(self._blocks)}<footer>Written by simctl.</footer></body></html>\n",
            encoding="utf-8",
        )

    def _caption(self, caption: str) -> None:
        if caption:
            self._blocks.append(f'<p class="caption">{escape(caption)}</p>')
