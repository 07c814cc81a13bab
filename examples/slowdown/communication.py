"""What the ranks of an engine exchange, against what they compute."""

from __future__ import annotations

from gallery import Exhibit, lines
from symptom import Row, diagnosed, symptom

REFERENCE = {512: (8, 12), 4096: (45, 18), 16384: (120, 22)}

TEXT = """\
A prompt of a 70B model on eight H100s, chosen so that 512 tokens exchange for 8 ms. The growth of communication
follows, from measured collectives. The reference's compute grows 1.8 times where the tokens grow 32 times, which no
prefill does: its kernels' work grows at least in proportion. So here communication does not overtake compute; it
does on links that are slower or with more ranks, whose share of the compute shrinks.
"""


def run() -> Exhibit:
    rows, exchanged, computed = [], [], []
    for tokens, (reference_exchange, reference_compute) in REFERENCE.items():
        settings = {"trace.synth.lengths.prompt.value": tokens}
        causes = diagnosed("communication", settings).all.causes
        alone = diagnosed("communication", settings | {"engine.tensor_parallel": 4}).all.causes
        exchanged.append(1e3 * causes["communication"])
        computed.append(1e3 * causes["prefill"])
        rows.append(
            Row(
                f"{tokens:,} tokens: communication / compute",
                f"{reference_exchange} / {reference_compute} ms",
                f"{exchanged[-1]:.1f} / {computed[-1]:.1f} ms",
                f"4 GPUs: {1e3 * alone['communication']:.1f} / {1e3 * alone['prefill']:.1f} ms",
            )
        )
    lengths = list(REFERENCE)
    figure = lines(
        {
            "communication": (lengths, exchanged),
            "compute": (lengths, computed),
            "communication, reference": (lengths, [pair[0] for pair in REFERENCE.values()]),
            "compute, reference": (lengths, [pair[1] for pair in REFERENCE.values()]),
        },
        "tokens of the prompt",
        "ms",
        xaxis_type="log",
        yaxis_type="log",
    )
    return symptom(
        "Communication against compute by sequence length",
        TEXT,
        rows,
        [(figure, "Both over the length of the prompt; logarithmic.")],
    )
