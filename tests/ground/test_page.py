"""The page: all text escaped, numbers to the right, drawn by a browser without a network."""

from pathlib import Path

import plotly.graph_objects
from browser import drawn_figures, show
from hypothesis import given
from hypothesis import strategies as st

from ground.page import Page


def written(page: Page, folder: Path) -> str:
    page.write(folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_every_text_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script>"
    page = Page(bad, lead=bad)
    page.heading(bad)
    page.text(bad)
    page.numbers([(bad, bad, "plain")])
    page.table([bad], [[bad]], caption=bad)
    html = written(page, tmp_path)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 10  # the title stands twice: in the head and above the text


def test_numbers_stand_right_and_text_left(tmp_path: Path) -> None:
    page = Page("t")
    page.table(["name", "value", "mark", "note"], [["7", "1.5 s", "", "fcfs"], ["8", "–", "best", "3 words here"]])
    html = written(page, tmp_path)
    assert '<th>name</th><th class="right">value</th><th>mark</th><th>note</th>' in html
    assert '<td>7</td><td class="right">1.5 s</td><td></td><td>fcfs</td>' in html


def test_a_page_without_figures_carries_no_script(tmp_path: Path) -> None:
    assert "<script" not in written(Page("t"), tmp_path)


def test_figures_are_drawn_offline(tmp_path: Path) -> None:
    page = Page("t")
    page.figure(plotly.graph_objects.Figure().add_scatter(x=[1, 2], y=[3, 4]), "one")
    page.figure(plotly.graph_objects.Figure().add_bar(x=["a", "b"], y=[3, 4]), "two")
    page.write(tmp_path / "page.html")
    document, console = show(tmp_path / "page.html", tmp_path)
    assert console == []
    assert drawn_figures(document) == (2, 2)
    assert 'class="main-svg"' in document


def test_the_browser_check_sees_errors_and_requests(tmp_path: Path) -> None:
    """Without this the test above could pass because nothing is ever seen."""
    broken = (
        "<html><head></head><body><img src='https://example.invalid/x.png'><script>nothing()</script></body></html>"
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    _, console = show(tmp_path / "broken.html", tmp_path)
    assert any("nothing is not defined" in line for line in console)
    assert any("Content Security Policy" in line for line in console)


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(0, 3))
def test_a_table_has_all_its_cells(header: list[str], rows: int) -> None:
    page = Page("t")
    page.table(header, [header] * rows)
    (block,) = page._blocks
    assert block.count("<th>") + block.count("<th ") == len(header)
    assert block.count("<td>") + block.count("<td ") == len(header) * rows
