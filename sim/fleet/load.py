"""What a router knows of the replicas that it may choose from."""

from collections.abc import Sequence

from sim.engine.request import Request


class Load:
    """Requests sent to each replica and not ended, counted here and never late.

    A replica has a place in every list; places change when a replica comes or goes.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.tokens: list[int] = []  # prompt and output tokens of those requests

    def sent(self, place: int, request: Request) -> None:
        self.requests[place] += 1
        self.tokens[place] += request.prompt_tokens + request.output_tokens

    def ended(self, place: int, request: Request) -> None:
        self.requests[place] -= 1
        self.tokens[place] -= request.prompt_tokens + request.output_tokens

    def come(self) -> None:
        """One more replica, in the last place."""
        self.requests.append(0)
        self.tokens.append(0)

    def gone(self, place: int) -> None:
        """Those behind it move up."""
        del self.requests[place], self.tokens[place]


def least(values: Sequence[int]) -> int:
    """The place of the smallest value; the first of equals."""
    return values.index(min(values))
