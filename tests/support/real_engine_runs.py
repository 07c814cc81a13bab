"""A tiny model, traces and engines for the real engine's tests, and what plain greedy decoding says without a cache."""

import polars as pl
import torch
from hypothesis import strategies as st

from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape
from sim.engine.config import EngineConfig
from sim.engine.session_retention import SessionRetentionSettings
from traces.table import COLUMNS, Trace
from validate.prompts import prompt_of

VOCABULARY = 97
TINY = ModelShape(
    name="tiny", hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=32, vocab=VOCABULARY, dtype_bytes=4
)


def make_trace(rows):
    """Rows of dictionaries in order of arrival, with what is left out null."""
    names = ("arrival", "prompt_tokens", "output_tokens", "parent", "think_time", "prefix_ids", "prefix_block_tokens")
    names += ("session",)
    columns = {"request_id": list(range(len(rows)))} | {name: [row.get(name) for row in rows] for name in names}
    requests = pl.DataFrame(columns, schema={name: COLUMNS[name][0] for name in columns})
    return Trace(requests=requests, format="test", source="test", rows_read=len(rows))


@st.composite
def traces(draw):
    rows = []
    time = 0.0
    for index in range(draw(st.integers(1, 14))):
        prompt = draw(st.integers(1, 40))
        row = {"prompt_tokens": prompt, "output_tokens": draw(st.integers(1, 20))}
        if draw(st.booleans()):
            group = draw(st.integers(1, 2))
            row |= {"prefix_ids": [100 * group + i for i in range(-(-prompt // 8))], "prefix_block_tokens": 8}
            row |= {"session": draw(st.sampled_from([None, f"{group}", f"{group} too"]))}
        if index and draw(st.integers(0, 4)) == 0:
            row |= {"parent": draw(st.integers(0, index - 1)), "think_time": draw(st.floats(0, 0.02))}
        else:
            time += draw(st.sampled_from([0.0, 1e-4, 0.003, 0.05]))
            row |= {"arrival": time}
        rows.append(row)
    return make_trace(rows)


@st.composite
def configs(draw):
    seqs = draw(st.integers(1, 6))
    prefix_caching = draw(st.booleans())
    retention = st.builds(
        SessionRetentionSettings, ttl=st.sampled_from([None, 0.02]), max_sessions=st.none() | st.just(1)
    )
    return EngineConfig(
        kv_blocks=draw(st.integers(8, 30)),
        block_size=8,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 64)),
        enable_prefix_caching=prefix_caching,
        session_retention=draw(st.none() | retention) if prefix_caching else None,
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        async_scheduling=draw(st.booleans()),
        swap_blocks=draw(st.sampled_from([0, 4, 100])),
        max_model_len=draw(st.sampled_from([None, 50])),
    )


def greedy_without_cache(trace, blocks, block_size):
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=blocks, block_size=block_size)
    outputs = {}
    for row in trace.requests.to_dicts():
        sequence = prompt_of(row, vocabulary=VOCABULARY)
        for _ in range(row["output_tokens"]):
            sequence += decoder.step([SequenceInput(sequence, 0, list(range(blocks)))])
        outputs[row["request_id"]] = sequence[row["prompt_tokens"] :]
    return outputs
