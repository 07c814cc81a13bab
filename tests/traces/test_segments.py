"""Segments cut into blocks: equal ids exactly where the tokens from the start up to the block's end are equal."""

from hypothesis import given
from hypothesis import strategies as st

from traces.readers.segments import BlockIds, Chain

LENGTHS = {"a": 1, "b": 3, "c": 4, "d": 7, "e": 0}
chains = st.lists(st.lists(st.sampled_from(sorted(LENGTHS)), max_size=6), min_size=1, max_size=12)


def ids_of(block_ids: BlockIds, segments: list[str]) -> list[int]:
    chain = Chain(block_ids)
    for segment in segments:
        chain.extend(segment, LENGTHS[segment])
    return chain.ids


@given(chains, st.integers(1, 5))
def test_ids_are_equal_exactly_where_all_tokens_up_to_the_end_of_the_block_are(
    rows: list[list[str]], block: int
) -> None:
    block_ids = BlockIds(block)
    id_of: dict[tuple[object, ...], int] = {}
    for segments in rows:
        tokens = [(segment, place) for segment in segments for place in range(LENGTHS[segment])]
        found = ids_of(block_ids, segments)
        assert len(found) == len(tokens) // block  # full blocks only
        for number, block_id in enumerate(found):
            assert id_of.setdefault(tuple(tokens[: (number + 1) * block]), block_id) == block_id
    assert len(set(id_of.values())) == len(id_of)


def test_a_chain_that_grows_keeps_what_it_had() -> None:
    chain = Chain(BlockIds(4))
    chain.extend("b", 3)
    assert chain.ids == []
    chain.extend("d", 7)
    before = list(chain.ids)
    chain.extend("c", 4)
    assert len(before) == 2 and chain.ids[:2] == before and len(chain.ids) == 3
