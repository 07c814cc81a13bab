"""KV blocks in host memory and on disk, beyond the prefix cache: what goes there, what stays, and what comes back.

`kv_offload.py` is what the scheduler asks. Like the scheduler it has no clock: it says what is to be moved, and is told
when it has been. Who moves it is `host_link.py` in simulated time and `validate/engine/block_moves.py` on a real
engine.
"""
