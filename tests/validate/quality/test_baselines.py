"""Bits a byte without a model, against plain counting."""

import gzip
import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validate.quality.baselines import bigram_bits, gzip_bits
from validate.quality.text import Document

texts = st.lists(st.binary(min_size=2, max_size=40), min_size=1, max_size=4)


def documents(texts):
    return [Document(str(index), text) for index, text in enumerate(texts)]


@given(texts, texts)
def test_byte_pairs(training, held_out):
    pairs = Counter((a, b) for text in training for a, b in pairwise(text))
    first = Counter(a for text in training for a in text[:-1])
    asked = [(a, b) for text in held_out for a, b in pairwise(text)]
    expected = -sum(math.log2((pairs[a, b] + 1) / (first[a] + 256)) for a, b in asked) / len(asked)
    assert bigram_bits(documents(training), documents(held_out)) == pytest.approx(expected)


def test_nothing_known_is_eight_bits():
    assert bigram_bits(documents([b"ab"]), documents([b"xyz"])) == pytest.approx(8.0)


@given(texts)
def test_gzip_is_that_of_one_file(held_out):
    together = b"".join(held_out)
    assert gzip_bits(documents(held_out)) == pytest.approx(8 * len(gzip.compress(together, 9)) / len(together))
