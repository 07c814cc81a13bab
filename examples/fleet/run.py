"""Fleets at work: scaling over a day, routers, disaggregation, placement, a stampede, a failure, long sequences.

python examples/fleet/run.py -o runs/fleet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import autoscaling
import disaggregation
import failure
import long_sequences
import placement
import routers
import stampede
from gallery import gallery

main = gallery(
    "fleet",
    "What does a fleet do?",
    "Policies of a fleet side by side, on the same requests.",
    {
        "autoscaling": autoscaling.run,
        "disaggregation": disaggregation.run,
        "routers": routers.run,
        "placement": placement.run,
        "stampede": stampede.run,
        "failure": failure.run,
        "long_sequences": long_sequences.run,
    },
)

if __name__ == "__main__":
    main()
