"""Prompt lookup: a sequence is guessed to go on as it did behind the same tokens before.

The rule is vLLM's (`v1/spec_decode/ngram_proposer.py`): of the longest run of tokens at the sequence's end, within two
bounds, that occurred in it before, the first occurrence; it may overlap the end. vLLM looks through the whole sequence
each time; here the ends of all runs are remembered, so that a step costs what it added.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """Of one sequence, which only grows. Runs are `least` to `longest` tokens long."""

    def __init__(self, least: int, longest: int) -> None:
        self._lengths = range(least, longest + 1)
        self._first_end: dict[tuple[int, ...], int] = {}
        self._known = 0  # runs that end before the token of this number are remembered

    def goes_on(self, tokens: Sequence[int]) -> int | None:
        """Where in `tokens` that goes on which occurred before; None if nothing did."""
        first_end = self._first_end
        for end in range(self._known, len(tokens)):
            for length in self._lengths:
                if length <= end:
                    first_end.setdefault(tuple(tokens[end - length : end]), end)
        self._known = len(tokens)
        for length in reversed(self._lengths):
            if length < len(tokens) and (found := first_end.get(tuple(tokens[-length:]))) is not None:
                return found
        return None
