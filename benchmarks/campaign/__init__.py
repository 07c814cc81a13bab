"""The parts of the GPU campaign (`benchmarks/gpu_campaign.py`), one file a part.

A new part is a new file with `run(work)`, and a line in `PARTS`.
"""

from __future__ import annotations

# In order of worth: part → how many seconds it may take on a GPU that is not slower than an H100. The time left at the
# end is given to whoever comes, so these bound a part that goes wrong.
PARTS: dict[str, int] = {
    "ceilings": 60,
    "profile": 240,
    "check": 300,
    "power": 60,
    "recordings": 120,
    "copies": 90,
    "shapes": 150,
}
