"""Numbers as a person reads them: three significant digits, the unit that fits, a dash for what is not known."""

from __future__ import annotations

from sim.results.metric_names import describe

UNKNOWN = "–"


def seconds(value: float | None) -> str:
    """A time: "350 µs", "12.5 ms", "3.2 s", "14.1 min", "5.25 h"."""
    if value is None:
        return UNKNOWN
    for unit, size, below in (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 300.0), ("min", 60.0, 10_800.0)):
        if abs(value) < 0.9995 * below:  # what rounds up to `below` belongs to the next unit
            return f"{digits(value / size)} {unit}" if value else "0 s"
    return f"{digits(value / 3600)} h"


def digits(value: float | None) -> str:
    """Three significant digits, all digits of larger integers, thousands apart: "0.0123", "12.3", "12,345"."""
    if value is None:
        return UNKNOWN
    if abs(value) >= 99.95 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share(value: float | None) -> str:
    """A share in percent with one decimal, never rounded up to 100 %."""
    if value is None:
        return UNKNOWN
    percent = 100 * value
    return f"{min(percent, 99.9) if percent < 100 else percent:.1f} %"


def joules(value: float | None) -> str:
    """An energy: "350 J", "12.5 kJ", "1.25 kWh" from a tenth of one on, "2.5 MWh"."""
    if value is None:
        return UNKNOWN
    for unit, size, below in (("J", 1.0, 1e3), ("kJ", 1e3, 3.6e5), ("kWh", 3.6e6, 3.6e9)):
        if abs(value) < 0.9995 * below:
            return f"{digits(value / size)} {unit}"
    return f"{digits(value / 3.6e9)} MWh"


def watts(value: float | None) -> str:
    """A power: "523 W", "12.5 kW"."""
    if value is None:
        return UNKNOWN
    return f"{digits(value)} W" if abs(value) < 9995 else f"{digits(value / 1e3)} kW"


def metric_text(name: str, value: float | None) -> str:
    """The metric called `name` ("ttft.p99") with its unit; a plain count carries none, its label names it."""
    unit = describe(name).unit
    if value is None:
        return UNKNOWN
    if unit == "s":
        return seconds(value)
    if unit == "share":
        return share(value)
    if unit == "J":
        return joules(value)
    if unit == "W":
        return watts(value)
    if unit == "yes/no":
        return "yes" if value else "no"
    return f"{digits(value)} {unit}" if "/" in unit else digits(value)
