"""Importers of public kernel measurements, by name."""

from calibrate.importers.importer import Importer


def importers() -> dict[str, Importer]:
    """Every importer, in order of name. Loaded only when asked for, so that a profile is read without them."""
    from calibrate.importers import aiconfigurator, llmservingsim, vidur

    return {module.IMPORTER.name: module.IMPORTER for module in (aiconfigurator, llmservingsim, vidur)}
