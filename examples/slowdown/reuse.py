"""What finding prefixes again and cutting old context save of the attention work of conversations."""

from __future__ import annotations

from gallery import Exhibit
from symptom import Row, simulated, symptom

from sim.results.folder import Run

CALM = {"trace.synth.arrivals.rate": 0.05}
SHORT = CALM | {"trace.synth.sessions.turns": {"distribution": "geometric", "mean": 2}}
NO_REUSE = {"engine.enable_prefix_caching": False}
LIMIT = 4096
PRUNED_OFTEN = {"trace.context_limit": {"tokens": LIMIT, "drop": 16}}
PRUNED_SELDOM = {"trace.context_limit": {"tokens": LIMIT, "drop": LIMIT // 2}}

TEXT = f"""\
Conversations of twelve turns on average. Attention work is query-key pairs: a prompt's new tokens with all before
them, and each decoded token with its context. Pruning sends the last {LIMIT:,} tokens of a conversation only.
Dropped 16 tokens at a time it begins almost every turn anew, and its prefixes are not found again; dropped by half
when it is full it keeps both savings. What is saved follows from the turns: half of it at two turns.
"""


def run() -> Exhibit:
    whole = attention_work(simulated("sessions", CALM | NO_REUSE))
    saved = {
        name: 1 - attention_work(simulated("sessions", CALM | settings)) / whole
        for name, settings in (
            ("reuse", {}),
            ("often", PRUNED_OFTEN),
            ("seldom", PRUNED_SELDOM),
            ("pruned alone", PRUNED_SELDOM | NO_REUSE),
        )
    }
    short = [attention_work(simulated("sessions", SHORT | cache)) for cache in (NO_REUSE, {})]
    return symptom(
        "KV reuse and pruning",
        TEXT,
        [
            Row("attention work saved, twelve turns", "about half", f"{saved['reuse']:.0%} by reuse alone",
                f"{saved['seldom']:.0%} with half dropped at the limit; {saved['often']:.0%} with 16 tokens at a time; "
                f"{saved['pruned alone']:.0%} by pruning alone"),
            Row("the same, two turns on average", "about half", f"{1 - short[1] / short[0]:.0%} by reuse alone"),
        ],
    )  # fmt: skip


def attention_work(run: Run) -> float:
    """Query-key pairs of a run in which nobody is preempted."""
    requests = run.requests
    assert not requests["preemptions"].sum()
    cached = requests["cached_tokens"].cast(float)
    new = requests["prompt_tokens"] - cached
    decoded = requests["output_tokens"] - 1.0
    prefill = new * cached + new * (new + 1) / 2
    decode = decoded * requests["prompt_tokens"] + decoded * (decoded + 1) / 2
    return float((prefill + decode).sum())
