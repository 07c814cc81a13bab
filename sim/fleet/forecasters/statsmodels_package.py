"""The package that estimates the classical models' parameters; it is loaded only by those who use it."""

from __future__ import annotations

import importlib
from typing import Any

from ground.errors import UserError


def statsmodels(module: str, who: str) -> Any:
    """A module of statsmodels.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(f"statsmodels.{module}")
    except ImportError as error:
        raise UserError(f"{who}: needs the package statsmodels; install simctl[forecast]") from error
