"""Random numbers by place and not by turn: the n-th of a request is the same whoever asks, and however often."""

from __future__ import annotations

from traces.streams import stream

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Draws:
    """Numbers uniform in [0, 1), of a named stream.

    A stream that is drawn in turn would give other numbers as soon as a policy changes who is computed first, and
    policies could not be compared on the same luck.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._key = int(stream(seed, name).integers(1 << 63))

    def at(self, request: int, place: int) -> float:
        word = _mix(_mix(self._key + request * _GOLDEN & _WORD) + place * _GOLDEN & _WORD)
        return (word >> 11) * 2.0**-53


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators")."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31
