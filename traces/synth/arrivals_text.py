"""An arrival process as one word of a command line: `poisson:0.05`, `gamma:0.1,cv=2`, `on-off:rate_on=1,…`."""

from __future__ import annotations

from typing import Any

from ground.errors import UserError
from ground.spec import Spec, check_spec
from traces.synth.arrivals import Arrivals


class _Written(Spec):
    session_arrivals: Arrivals


def parse_arrivals(text: str, option: str) -> Arrivals:
    """`PROCESS:RATE` or `PROCESS:KEY=VALUE,…` with the keys of a spec; a bare number is the rate.

    Raises:
        UserError: names `option` and what is wrong with it.
    """
    process, _, rest = text.partition(":")
    keys: dict[str, Any] = {"process": process}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key, value = (key, value) if equals else ("rate", key)
        if key in keys:
            raise UserError(f"{option}: {key!r} is given twice in {text!r}")
        try:
            keys[key] = float(value)
        except ValueError:
            raise UserError(f"{option}: found {part!r}, expected a number, in the form poisson:0.05") from None
    return check_spec(_Written, {"session_arrivals": keys}, option).session_arrivals
