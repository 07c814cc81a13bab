"""What the figures of a profile rest on, as assumptions of whatever is predicted with it."""

from __future__ import annotations

from calibrate.profile import Profile
from ground.assumption import Assumption, Source
from ground.errors import UserError


def source_of(profile: Profile) -> Source:
    """On whose word its figures are. Raises UserError: the profile names no known kind of source."""
    source = profile.provenance.source
    if source not in ("measured", "imported", "datasheet"):
        raise UserError(
            f"profile {profile.name}: provenance.source is {source!r}; expected measured, imported or datasheet"
        )
    return source  # type: ignore[return-value]


def provenance(profile: Profile) -> Assumption:
    """Raises UserError: as `source_of`."""
    return Assumption("profile", profile.name, "", source_of(profile), profile.provenance.note)


def stand_ins(profile: Profile) -> list[Assumption]:
    """Kernels that a profile took from elsewhere (`calibrate.kernel_library`)."""
    return [
        Assumption(f"kernel.{layer}", how, "", "imported" if how == "borrowed" else "assumed", text)
        for how in ("borrowed", "assumed")
        for layer, text in profile.grid.get(how, {}).items()
    ]
