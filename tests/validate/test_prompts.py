"""Prompts are a function of prefix ids and request id."""

from hypothesis import given
from hypothesis import strategies as st

from validate.prompts import prompt_ids, prompt_of

ids = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 10**6), st.integers(1, 200), st.lists(ids, max_size=6), st.integers(1, 32), st.integers(2, 10**5))
def test_length_range_and_repeatability(request_id, tokens, prefix, block, vocabulary):
    first = prompt_ids(request_id, tokens, prefix, block, vocabulary=vocabulary)
    assert len(first) == tokens
    assert all(0 <= token < vocabulary for token in first)
    assert first == prompt_ids(request_id, tokens, prefix, block, vocabulary=vocabulary)


@given(st.lists(ids, min_size=1, max_size=5), st.integers(1, 32), st.integers(1, 100), st.integers(1, 100))
def test_equal_prefix_ids_are_equal_tokens(prefix, block, tail_a, tail_b):
    shared = len(prefix) * block
    a = prompt_ids(1, shared + tail_a, prefix, block, vocabulary=50_000)
    b = prompt_ids(2, shared + tail_b, prefix, block, vocabulary=50_000)
    assert a[:shared] == b[:shared]


@given(st.lists(ids, min_size=2, max_size=2, unique=True))
def test_different_prefix_ids_are_different_tokens(pair):
    one, other = (prompt_ids(0, 16, [prefix_id], 16, vocabulary=50_000) for prefix_id in pair)
    assert one != other


def test_tails_belong_to_their_request():
    assert prompt_ids(1, 32, vocabulary=50_000) != prompt_ids(2, 32, vocabulary=50_000)


def test_partial_last_block_is_the_beginning_of_the_whole_one():
    whole = prompt_ids(1, 32, [7, 8], 16, vocabulary=1000)
    assert prompt_ids(2, 21, [7, 8], 16, vocabulary=1000) == whole[:21]


def test_the_seed_changes_every_token_stream():
    assert prompt_ids(1, 32, [5], vocabulary=50_000, seed=1)[:16] != prompt_ids(1, 32, [5], vocabulary=50_000)[:16]


@given(st.lists(ids, max_size=4), st.integers(1, 20), st.integers(1, 90), st.binary(min_size=1, max_size=50))
def test_prompts_cut_from_a_text_are_pieces_of_it(prefix, block, tokens, text):
    row = {"request_id": 3, "prompt_tokens": tokens, "prefix_ids": prefix, "prefix_block_tokens": block}
    prompt = prompt_of(row, vocabulary=256, text=text)
    assert len(prompt) == tokens
    assert prompt == prompt_of(row, vocabulary=256, text=text)
    round_and_round = text * (2 + block // len(text) + tokens // len(text))
    shared = min(len(prefix), tokens // block) * block
    pieces = [prompt[start : start + block] for start in range(0, shared, block)]
    assert all(bytes(piece) in round_and_round for piece in pieces)
    rest = prompt[shared:]
    if len(prefix) * block <= tokens:
        assert bytes(rest) in round_and_round
    others = prompt_ids(4, tokens, prefix, block, vocabulary=256, text=text)
    assert prompt[:shared] == others[:shared]
