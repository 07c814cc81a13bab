"""The winners of several studies on one page: predicted gain, measured gain, did the order hold, at what quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ground.page import Page
from ground.whole_file import whole_file
from sim.results.display import UNKNOWN
from validate.gain_page import add_gains, gain_tiles
from validate.gains import Gain, gains
from validate.validation import Validation


@dataclass
class CheckedStudies:
    """Studies whose winners were replayed, and the gains of all of them in one order."""

    validations: Sequence[Validation]

    @cached_property
    def gains(self) -> list[Gain]:
        return gains(self.validations)

    def as_json(self) -> dict[str, Any]:
        return {
            "gains": [gain.as_json() for gain in self.gains],
            "refused": {validation.study: validation.refused for validation in self.validations},
            "studies": {validation.study: f"{validation.study}/validation.json" for validation in self.validations},
        }

    def write_json(self, path: Path) -> None:
        """Write the file whole or not at all."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_winners_report(checked: CheckedStudies, path: Path) -> None:
    """Write the page as one self-contained HTML file at `path`; each study has a page of its own beside it."""
    policies = len(checked.gains)
    page = Page(
        "Winners checked", f"{policies} policies of {len(checked.validations)} studies, against their baselines."
    )
    page.numbers(gain_tiles(checked.gains))
    add_gains(page, checked.gains, [row for validation in checked.validations for row in validation.refusals])
    page.heading("How it was measured")
    rows = [
        [validation.study, _engine(validation), f"{validation.study}/report.html"] for validation in checked.validations
    ]
    page.table(["study", "engine", "page"], rows)
    page.write(path)


def _engine(validation: Validation) -> str:
    known = [
        f"{key} {value}" for key, value in validation.engine.items() if key in ("engine", "device", "threads", "model")
    ]
    return ", ".join(known) or UNKNOWN
