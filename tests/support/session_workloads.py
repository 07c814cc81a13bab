"""Random conversations: turns that follow one another, each with the whole history as the start of its prompt."""

import polars as pl
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.engine.session_retention import SessionRetentionSettings

BLOCK = 4  # tokens of a prefix id, and of a block


@st.composite
def conversations(draw: st.DrawFn, *, closed_loop: bool | None = None) -> pl.DataFrame:
    """Up to six sessions of up to four turns of at most 96 tokens, and a few requests of no session between them.

    Turns either wait for the answer before them, or come when they come: then they may overlap.
    """
    waits_for_answer = draw(st.booleans()) if closed_loop is None else closed_loop
    gap = st.sampled_from([0.0, 0.003, 0.02, 0.1, 0.4, 2.0])
    rows: list[dict] = []
    for number in range(draw(st.integers(1, 6))):
        start, history, before = draw(gap) + draw(gap), 0, None
        covered = draw(st.booleans())  # whether the ids go on over the output
        priority = draw(st.integers(0, 2))
        for _ in range(draw(st.integers(1, 4))):
            new, output = draw(st.integers(1, 16)), draw(st.integers(1, 16))
            prompt = history + new
            if prompt + output > 96:
                break
            named = (prompt + output if covered else prompt) // BLOCK
            rows.append(
                {
                    "arrival": start,
                    "prompt_tokens": prompt,
                    "output_tokens": output,
                    "prefix_ids": [1000 * (number + 1) + i for i in range(named)],
                    "priority": priority,
                    "session": f"s{number}",
                    "before": before,
                    "think_time": draw(gap),
                }
            )
            before, history, start = len(rows) - 1, prompt + output, start + draw(gap)
    rows += [
        {
            "arrival": draw(gap) + draw(gap),
            "prompt_tokens": draw(st.integers(1, 60)),
            "output_tokens": draw(st.integers(1, 36)),
            "prefix_ids": [1_000_000 * (number + 1)],
            "priority": draw(st.integers(0, 2)),
            "session": None,
            "before": None,
            "think_time": None,
        }
        for number in range(draw(st.integers(0, 4)))
    ]
    # Request ids are places, so a turn that waits keeps the place of its parent.
    order = sorted(range(len(rows)), key=lambda place: (rows[place]["arrival"], place))
    place_of = {old: new for new, old in enumerate(order)}
    ordered = [rows[old] for old in order]
    for row in ordered:
        before = row.pop("before")
        waits = waits_for_answer and before is not None
        row["parent"] = place_of[before] if waits else None
        if waits:
            row["arrival"] = None
    types = {"arrival": pl.Float64, "parent": pl.Int64, "think_time": pl.Float64, "session": pl.String}
    table = pl.DataFrame(ordered, schema_overrides=types | {"prefix_ids": pl.List(pl.Int64)})
    return table.with_row_index("request_id").with_columns(
        pl.col("request_id").cast(pl.Int64), prefix_block_tokens=pl.lit(BLOCK, dtype=pl.Int64)
    )


retentions = st.builds(
    SessionRetentionSettings,
    policy=st.sampled_from(["lru", "priority"]),
    ttl=st.sampled_from([None, None, 0.01, 0.1, 0.5, 3.0]),
    max_sessions=st.sampled_from([None, None, 1, 2]),
)


@st.composite
def retaining(draw: st.DrawFn, config: EngineConfig) -> EngineConfig:
    """The same engine, with blocks kept for idle sessions, and perhaps few blocks."""
    blocks = draw(st.sampled_from([24, 30, config.kv_blocks, 200]))
    return config.model_copy(
        update={"enable_prefix_caching": True, "session_retention": draw(retentions), "kv_blocks": blocks}
    )
