"""The replica with the fewest tokens outstanding, prompts and outputs of its requests; the first of equals.

It knows how long the answers will be, which a real router has to guess.
"""

from sim.engine.request import Request
from sim.fleet.load import Load, least
from sim.fleet.routers.router import Router


class LeastTokens(Router):
    def choose(self, request: Request, load: Load) -> int:
        return least(load.tokens)
