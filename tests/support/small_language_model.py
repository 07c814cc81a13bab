"""A byte-level model and a text so small that training and measuring take a second."""

from calibrate.model import ModelShape
from validate.quality.text import Corpus, Document

SMALL = ModelShape(
    name="small",
    hidden=32,
    layers=3,
    heads=2,
    kv_heads=1,
    head_dim=16,
    intermediate=48,
    vocab=256,
    max_context=512,
    dtype_bytes=4,
)

_SENTENCE = b"the quick brown fox jumps over the lazy dog and the dog does not mind. "


def small_corpus() -> Corpus:
    names, kept, held = [f"file{number}.py" for number in range(100)], [], []
    for name in names:
        document = Document(name, (_SENTENCE + name.encode() + b" ") * 6)
        (held if document.held_out else kept).append(document)
    return Corpus(sorted(kept[:4] + held[:2], key=lambda document: document.name))
