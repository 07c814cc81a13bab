"""Equal requests, all of them there at once: what an engine is timed with by itself."""

from __future__ import annotations

from campaign.work import BLOCK_SIZE
from traces.synth import SynthSpec, generate
from traces.table import Trace

_SEED = 0


def equal_requests(requests: int, prompt: int, output: int) -> Trace:
    """So many requests of `prompt` and `output` tokens each."""
    lengths = {"prompt": prompt, "output": output}
    spec = {
        "requests": requests,
        "arrivals": {"process": "constant", "rate": 1e6},
        "lengths": {name: {"distribution": "constant", "value": tokens} for name, tokens in lengths.items()},
    }
    return generate(SynthSpec.model_validate(spec), _SEED)


def blocks_for(sequences: int, prompt: int, output: int) -> int:
    """KV blocks with which so many of them run at once."""
    return sequences * (-(-(prompt + output) // BLOCK_SIZE) + 1)
