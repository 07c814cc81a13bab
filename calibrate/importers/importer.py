"""What an importer is: it reads somebody else's kernel measurements into a `Profile`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calibrate.model import ModelShape
from calibrate.profile import Profile


@dataclass(frozen=True)
class Importer:
    """One public format. `read(source, model, tp)` returns the profile of one rank.

    `source` is what the user typed: a folder, or a name where the format has names. `model` is None where the user
    gave none, and `tp` likewise: a format that says the model itself does not need them.
    """

    name: str
    summary: str
    read: Callable[[str, ModelShape | None, int | None], Profile]
