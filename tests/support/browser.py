"""Shows a page in headless Chromium: the document as drawn, and what the console said."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Under this policy a page that asks the network for anything is refused, and the console says so.
OFFLINE = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=8000 --window-size=1100,2400
--enable-logging=stderr --v=0 --dump-dom"""


def show(page: Path, scratch: Path) -> tuple[str, list[str]]:
    """The drawn document of `page` and the console's lines, with the network refused; skips without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium in PATH to show the page in")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE}">'
    html = page.read_text(encoding="utf-8")
    assert "<head>" in html
    copy = scratch / "offline.html"
    copy.write_text(html.replace("<head>", f"<head>{policy}", 1), encoding="utf-8")
    done = subprocess.run(
        [chromium, *FLAGS.split(), f"--user-data-dir={scratch / 'profile'}", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, re.findall(r"^\[.*:CONSOLE.*$", done.stderr, flags=re.MULTILINE)


def drawn_figures(document: str) -> tuple[int, int]:
    """How many figures the page holds, and how many of them plotly has drawn."""
    return document.count('class="figure"'), document.count('class="plot-container')
