"""Of which pool each event of a recording is: as the event says, or as the segment does in which it lies.

PyTorch's events state no pool in every version (2.11 does not), its layouts do. A segment that is there at the end is
of the pool that the last layout states. One that was given back before is taken for the ordinary pool's, as a private
pool gives nothing back while its graphs live; if it was not, the replay differs.
"""

from __future__ import annotations

from bisect import bisect_right, insort

import polars as pl

from sim.engine.allocator.caching import ORDINARY
from sim.engine.allocator.segment import Pool
from validate.allocator.recording import Recording


def pools_of(recording: Recording) -> list[Pool]:
    """One pool an event, in order."""
    rows = list(recording.events.select("action", "address", "pool_owner", "pool_number").iter_rows())
    if recording.events["pool_owner"].null_count() == 0:
        return [(owner, number) for _, _, owner, number in rows]
    before, after = (_segments(recording, moment) for moment in ("before", "after"))
    last_begin = {address: at for at, (action, address, *_) in enumerate(rows) if action in _BEGINS}
    live = dict(before)
    order = sorted(live)
    pools = []
    for at, (action, address, owner, number) in enumerate(rows):
        if action in _BEGINS:
            kept = last_begin[address] == at and address in after
            if address not in live:
                insort(order, address)
            live[address] = after[address] if kept else ORDINARY
        place = bisect_right(order, address) - 1 if address is not None else -1
        found = live[order[place]] if place >= 0 else ORDINARY
        pools.append((owner, number) if owner is not None else found)
        if action in _ENDS and address in live:
            del live[address]
            order.remove(address)
    return pools


_BEGINS = ("segment_alloc", "segment_map")
_ENDS = ("segment_free", "segment_unmap")


def _segments(recording: Recording, moment: str) -> dict[int, Pool]:
    """Address → pool, of the segments at one of the two moments."""
    rows = recording.layout.filter(pl.col("moment") == moment).select("segment", "pool_owner", "pool_number").unique()
    return {address: (owner, number) for address, owner, number in rows.iter_rows()}
