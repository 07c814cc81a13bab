"""Pure decode steps of as many sequences: their time over the tokens that they read, and its sums over many steps."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import ceil, inf, sqrt

import numpy as np

from calibrate.curve import Curve


class DecodeLaw:
    """Seconds of a step that decodes `decodes` sequences: `fixed` + `attention`, and at least `least`.

    `seconds` is that, as one curve over the sum of their cached tokens.
    """

    __slots__ = ("attention", "decodes", "extrapolated", "fixed", "high", "least", "low", "outside", "seconds")

    def __init__(
        self,
        decodes: int,
        fixed: float,
        attention: Curve,
        least: float = 0.0,
        outside: Sequence[str] = (),
        extrapolated: Counter[str] | None = None,
    ) -> None:
        """`outside`: kernel classes whose grid `decodes` leaves. `extrapolated`: where such steps are counted."""
        self.decodes = decodes
        self.fixed = fixed
        self.attention = attention
        self.least = least
        self.seconds = attention.plus(fixed).at_least(least)
        self.outside = outside
        self.extrapolated: Counter[str] = Counter() if extrapolated is None else extrapolated
        # Within these a step lies inside the grid.
        self.low, self.high = (inf, -inf) if outside else (attention.low, attention.high)

    def slower(self, device: float, host: float, *, overlaps: bool) -> DecodeLaw:
        """The same where a step takes `device` seconds longer, and its host `host` seconds, which are hidden behind the
        device as far as it `overlaps`."""
        return DecodeLaw(
            self.decodes,
            self.fixed + device + (0.0 if overlaps else host),
            self.attention,
            self.least + device + (host if overlaps else 0.0),
            self.outside,
            self.extrapolated,
        )

    def times(self, factor: float) -> DecodeLaw:
        """The same where every step takes `factor` times as long."""
        return DecodeLaw(
            self.decodes,
            self.fixed * factor,
            self.attention.times(factor),
            self.least * factor,
            self.outside,
            self.extrapolated,
        )

    def count(self, kv_tokens: int, steps: int = 1, full: int = 0) -> None:
        """Count what lies outside the grid of so many steps in a row, the first of which reads `kv_tokens`; `full` of
        the sequences read no more from step to step."""
        growing = self.decodes - full
        last = kv_tokens + (steps - 1) * growing
        if self.low <= kv_tokens and last <= self.high:
            return
        for kernel_class in self.outside:
            self.extrapolated[kernel_class] += steps
        if "attention" not in self.outside:
            if not growing:
                self.extrapolated["attention"] += steps
                return
            below = min(steps, max(0, ceil((self.attention.low - kv_tokens) / growing)))
            above = min(steps, max(0, ceil((last - self.attention.high) / growing)))
            if below + above:
                self.extrapolated["attention"] += below + above


class DecodeRun:
    """Steps in a row that decode the same sequences, each with one more token a step, or some of them (the `full` ones)
    with as many as before; when does each of them end?

    Between two grid points a step takes a constant longer than the one before, so n of them take
    n a + n (n - 1) b / 2: no step is visited. An instant is this sum since the run began, whether it is asked for at
    each step or only at the last: so taking many steps at once gives the same bits as taking them singly.
    """

    __slots__ = (
        "_before",
        "_behind",
        "_cell",
        "_first",
        "_full",
        "_growing",
        "_growth",
        "_kv_tokens",
        "_law",
        "_seconds",
        "_start",
        "taken",
    )

    def __init__(self, start: float, law: DecodeLaw, kv_tokens: int, full: int = 0) -> None:
        """It begins at `start`; its first step reads `kv_tokens` cached tokens."""
        self._start = start
        self._kv_tokens = kv_tokens
        self.taken = 0  # steps
        self._law = law
        self._full = full
        self._growing = law.decodes - full
        self._enter(max(0, bisect_right(law.seconds.xs, kv_tokens) - 1), 0, 0.0)

    def _enter(self, cell: int, first: int, before: float) -> None:
        """Go to a cell of the law, which begins with step `first`, after `before` seconds."""
        curve, growing = self._law.seconds, self._growing
        xs, slope = curve.xs, curve.slopes[cell]
        self._cell, self._first, self._before = cell, first, before
        # The first step behind the cell, seconds of its first one, and half of what each takes longer than the last.
        self._behind = ceil((xs[cell + 1] - self._kv_tokens) / growing) if growing and cell + 1 < len(xs) else inf
        self._seconds = curve.ys[cell] + slope * (self._kv_tokens + first * growing - xs[cell])
        self._growth = slope * growing / 2

    def goes_on(self, decodes: int, kv_tokens: int, full: int = 0) -> bool:
        """Whether a step of such a batch is the next one of this run."""
        same = self._law.decodes == decodes and self._full == full
        return same and self._kv_tokens + self.taken * self._growing == kv_tokens

    def end(self, steps: int) -> float:
        """When `steps` more than were taken have ended."""
        steps += self.taken
        return self._start + (self._sum(steps) if steps <= self._behind else self._in_cell_of(steps)._sum(steps))

    def steps_until(self, time: float) -> int:
        """The least number of steps more than were taken, at least one, that end at `time` or later."""
        seconds, run = time - self._start, self
        while run._behind < inf and run._sum(run._behind) < seconds:
            run = run._in_cell_of(run._behind + 1)
        # What rounding does to the estimate must not move an instant.
        steps = max(1, run._estimate(seconds) - self.taken)
        while self.end(steps) < time:
            steps += 1
        while steps > 1 and self.end(steps - 1) >= time:
            steps -= 1
        return steps

    def take(self, steps: int) -> None:
        """So many more have run."""
        law = self._law
        law.count(self._kv_tokens + self.taken * self._growing, steps, self._full)
        self.taken += steps
        while self.taken >= self._behind:
            self._enter(self._cell + 1, int(self._behind), self._sum(self._behind))

    def _sum(self, steps: float) -> float:
        """Seconds of the first `steps` steps, of which the last lies in this cell (or just before it)."""
        own = steps - self._first
        return self._before + (own * self._seconds + own * (own - 1) * self._growth)

    def _estimate(self, seconds: float) -> int:
        """About how many steps take so many seconds, where the last of them lies in this cell."""
        left = seconds - self._before
        # Of growth n² + (seconds - growth) n = left the root that stays exact as growth goes to zero.
        linear = self._seconds - self._growth
        root = linear + sqrt(max(0.0, linear * linear + 4.0 * self._growth * left))
        return self._first + (ceil(2.0 * left / root) if root > 0.0 else 1)

    def _in_cell_of(self, steps: float) -> DecodeRun:
        """The same run, further on in the law: where the last of its first `steps` steps lies."""
        run = DecodeRun(self._start, self._law, self._kv_tokens, self._full)
        while steps > run._behind:
            run._enter(run._cell + 1, int(run._behind), run._sum(run._behind))
        return run


class SummedRun:
    """The same where step times follow no such law: each is given, and an instant is their running sum."""

    __slots__ = ("_ends", "taken")

    def __init__(self, start: float, seconds: np.ndarray) -> None:
        """`seconds` of each step, (steps,); it is overwritten."""
        seconds[0] += start
        self._ends = np.add.accumulate(seconds, out=seconds)
        self.taken = 0

    def goes_on(self, decodes: int, kv_tokens: int, full: int = 0) -> bool:
        """Never: a sum goes on from its last instant, so a new run gives the same bits."""
        return False

    def end(self, steps: int) -> float:
        """When `steps` more than were taken have ended."""
        return float(self._ends[self.taken + steps - 1])

    def steps_until(self, time: float) -> int:
        """The least number of steps more than were taken, at least one, that end at `time` or later."""
        return max(1, int(self._ends.searchsorted(time)) + 1 - self.taken)

    def take(self, steps: int) -> None:
        """So many more have run."""
        self.taken += steps
