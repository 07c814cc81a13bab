"""How many KV blocks there is room for: what the profile predicts, and what the device says with the decoder in it."""

from __future__ import annotations

from typing import Any

import torch

from calibrate.decoder import Decoder, SequenceInput
from calibrate.memory import kv_block_count
from calibrate.profile import Profile
from campaign.policies import ENGINE
from campaign.work import BLOCK_SIZE

# Of the GPU's memory. An engine's usual 0.9 counts on graphs and workspaces to find room in what is left; here that is
# more, since several decoders stand in a process one after the other.
UTILISATION = 0.85


def room_for_blocks(profile: Profile, device: str) -> dict[str, Any]:
    """Blocks predicted and measured, and the terms of both in bytes.

    Measured is the same sum with what the device says: weights and the peak of a step of the whole token budget by
    torch's counters, and what others than torch's allocator hold by the driver's.
    """
    model, engine = profile.shape, ENGINE[device]
    budget, sequences = engine["max_num_batched_tokens"], engine["max_num_seqs"]
    predicted, terms = kv_block_count(profile, model, 1, BLOCK_SIZE, UTILISATION, budget, sequences)
    start = torch.cuda.memory_allocated()
    kv_blocks = max(sequences, -(-budget // BLOCK_SIZE))
    decoder = Decoder(model, device=device, dtype=torch.bfloat16, kv_blocks=kv_blocks, block_size=BLOCK_SIZE)
    weights = torch.cuda.memory_allocated() - start - sum(cache.nbytes for cache in decoder.caches)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decoder.step([SequenceInput([1] * budget, 0, range(kv_blocks))])
    decoder.step([SequenceInput([1], 0, [block]) for block in range(sequences)])
    activations = torch.cuda.max_memory_allocated() - before
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    block_bytes = BLOCK_SIZE * model.kv_bytes_per_token()
    return {
        "predicted": predicted,
        "measured": int((total * UTILISATION - weights - activations - outside) // block_bytes),
        "predicted_terms": {term.name: term.value for term in terms},
        "measured_terms": {
            "memory.device": total,
            "memory.weights": weights,
            "memory.activation_peak": activations,
            "memory.non_torch": outside,
        },
    }
