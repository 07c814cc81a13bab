"""Multi-turn conversations: each turn repeats all before it and is sent some thinking time after the last answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from ground.spec import Spec
from traces.synth.lengths import Count, Time

Ints = NDArray[np.int64]


class Sessions(Spec):
    """`arrivals` then start sessions, and the prompt length is that of a turn's new tokens.

    A session ends before the turn whose prompt and output would not fit into `context_limit` tokens.
    """

    turns: Count
    think_time: Time
    context_limit: PositiveInt | None = None


def first_of_session(session: Ints) -> NDArray[np.bool_]:
    """True in the rows where a new session begins; `session` is sorted."""
    return np.diff(session, prepend=-1) != 0


def prompt_lengths(session: Ints, new: Ints, output: Ints, prefix: Ints) -> Ints:
    """Prompt of a turn = shared prefix + all earlier turns' new tokens and outputs + its own new tokens.

    All arguments have one entry a request; `session` is sorted.
    """
    added = np.cumsum(new + output)
    before_session = np.maximum.accumulate(np.where(first_of_session(session), added - new - output, 0))
    prompts: Ints = prefix + added - before_session - output
    return prompts
