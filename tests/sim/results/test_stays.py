"""Where requests were when: on the way, on the replica of their prompt, on that of their tokens."""

import numpy as np
import polars as pl

from sim.results.diagnosis.stays import stays_of
from sim.results.recorder import EventRecorder

# Three requests: on one replica; from 0 to 1 behind a network; from an attempt that failed to one from 5 on.
FINISHED = pl.DataFrame(
    {"request_id": [3, 4, 7], "replica": [0, 1, 1], "first_scheduled": [1.0, 2.0, 6.0], "finish": [9.0, 8.0, 9.0]}
)
SENT = np.array([0.5, 1.0, 5.0])


def test_each_request_is_somewhere_all_the_time() -> None:
    events = EventRecorder()
    events.append(1.0, -1, "hop", request_id=4, seconds=0.25, detail="to edge")
    events.append(2.0, 0, "prefilled", request_id=4, seconds=1.0)
    events.append(3.25, 1, "kv_transfer", request_id=4, seconds=0.5)
    events.append(3.0, 1, "joined", request_id=4, seconds=1.5)
    events.append(7.5, -1, "hop", request_id=4, seconds=0.25, detail="from edge")
    events.append(7.75, -1, "hop", request_id=4, seconds=0.25, detail="from mesh")
    # Of the attempt that failed, and of a request that did not finish.
    events.append(2.0, -1, "hop", request_id=7, seconds=9.0, detail="to edge")
    events.append(3.0, 1, "joined", request_id=7, seconds=9.0)
    events.append(3.0, -1, "hop", request_id=5, seconds=9.0, detail="to edge")
    stays = stays_of(FINISHED, events.take_table(), SENT)
    assert stays.owner.tolist() == [0, 1, 2, 1] and stays.replica.tolist() == [0, 0, 1, 1]
    assert stays.begin.tolist() == [1.0, 2.0, 6.0, 4.5] and stays.end.tolist() == [9.0, 3.0, 9.0, 7.5]
    assert stays.there.tolist() == [0.0, 0.25, 0.0]
    assert stays.network.tolist() == [0.0, 0.75 + 0.5, 0.0]
    assert stays.between.tolist() == [0.0, 1.0, 0.0]
    owner, time = np.array([0, 1, 1, 2]), np.array([5.0, 2.5, 6.0, 6.5])
    assert stays.replica_at(owner, time).tolist() == [0, 0, 1, 1]


def test_most_requests_stay_where_they_are() -> None:
    stays = stays_of(FINISHED, EventRecorder().take_table(), SENT)
    assert stays.replica.tolist() == [0, 1, 1] and not stays.network.any() and not stays.between.any()
    assert stays.end.tolist() == FINISHED["finish"].to_list()
