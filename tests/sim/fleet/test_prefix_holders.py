"""Who has the start of a prompt, held to a search through every replica's own set."""

from hypothesis import given
from hypothesis import strategies as st
from prefix_matches import longest

from sim.fleet.routers.prefix_holders import PrefixHolders

IDS = st.lists(st.integers(0, 5), max_size=5, unique=True)


@given(
    st.lists(st.sets(st.integers(0, 5)), min_size=2, max_size=12),
    st.sets(st.integers(0, 11)),
    IDS,
    st.data(),
)
def test_of_the_longest_matches_the_least(there: list[set[int]], leave: set[int], ids: list[int], data) -> None:  # type: ignore[no-untyped-def]
    """Some leave, and as many come in their place, who get bits given back."""
    holders = PrefixHolders()
    holders.members(range(len(there)))
    for replica, own in enumerate(there):
        holders.add(replica, *own)
    stay = [replica for replica in range(len(there)) if replica not in leave]
    for replica in leave & set(range(len(there))):
        holders.remove(replica, *there[replica])
    holders.members(stay)
    members = [*stay, *range(100, 100 + len(there) - len(stay))]
    holders.members(members)
    has = dict(enumerate(there))
    matches = []
    for replica in members:
        own = has.get(replica, set())
        matches.append(next((count for count, one in enumerate(ids) if one not in own), len(ids)))
    best = [place for place, match in enumerate(matches) if match == max(matches)]
    values = data.draw(st.lists(st.integers(0, 3), min_size=len(members), max_size=len(members)))
    assert holders.matches(ids) == matches
    assert longest(holders, ids, len(members)) == (max(matches), best)
    assert holders.least_of_longest(ids, values) == (max(matches), min(best, key=values.__getitem__))
