"""Symptoms of a serving engine that gets slower, simulated: what was reported, what comes out, what a remedy gives.

    python examples/slowdown/run.py -o runs/slowdown

A scenario has stated, plausible parameters. One of them is calibrated on the first figure of its row, and the row's
second figure is then a prediction; where the physics of a run does not give it, the row says what it does give.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import communication
import lengths
import many_sessions
import model_reloads
import no_cache
import pipeline
import reuse
from gallery import gallery

main = gallery(
    "slowdown",
    "Why does it get slower?",
    "Symptoms of a serving engine, simulated, and what helps against them.",
    {
        "lengths": lengths.run,
        "no_cache": no_cache.run,
        "reuse": reuse.run,
        "pipeline": pipeline.run,
        "communication": communication.run,
        "model_reloads": model_reloads.run,
        "many_sessions": many_sessions.run,
    },
)

if __name__ == "__main__":
    main()
