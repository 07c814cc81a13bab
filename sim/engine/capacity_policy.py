"""Guaranteed no evict: a request is admitted only where all who were admitted, and it too, find blocks to their last
token. So nobody is ever preempted.

TensorRT-LLM's default (`batch_manager/capacityScheduler.cpp`, `GuaranteedNoEvictScheduler`), which reckons with the
most tokens that a request may generate; here that is what it generates. Its delay of prompts whose prefix another
request is just computing is left out. Blocks that are free less those that are promised change only as somebody is
admitted or leaves, so who is refused stays refused until then, however many steps the others decode.
"""

from collections.abc import Iterable

from sim.engine.decode_batch import DecodeBatch
from sim.engine.request import Request


def tokens_to_the_end(request: Request, batch: DecodeBatch, prefilling: Iterable[Request], block_size: int) -> int:
    """Tokens for whose blocks, but for those that the prefix cache has, there must be room if `request` is admitted.

    `batch` decodes; `prefilling` hold blocks and do not decode yet.
    """
    blocks = batch.blocks_to_come + blocks_in_all(request, block_size)
    blocks += sum(blocks_in_all(one, block_size) - one.holding.blocks for one in prefilling)
    return blocks * block_size


def blocks_in_all(request: Request, block_size: int) -> int:
    """When it has its last token, which is never computed."""
    return -(-(request.prompt_tokens + request.output_tokens - 1) // block_size)
