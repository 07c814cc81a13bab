"""The roofline of published figures, and the KV blocks that a device has room for."""

import pytest

from calibrate.datasheet import datasheet_profile, devices
from calibrate.latency import StepLatency
from calibrate.memory import kv_block_count
from calibrate.model import load_model
from calibrate.profile import Profile
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")


@pytest.mark.parametrize("name", sorted(devices()))
def test_a_single_decode_reads_every_weight_once(name: str) -> None:
    """At batch 1 and no context a step is memory-bound: weights (less the embedding table) over bandwidth."""
    device = devices()[name]
    latency = StepLatency(datasheet_profile(name, MODEL, 1), MODEL)
    read = MODEL.weight_bytes() - MODEL.vocab * MODEL.hidden * MODEL.dtype_bytes
    assert latency.step((), 1, 0) == pytest.approx(read / device.bandwidth, rel=5e-3)


def test_a_large_prefill_is_bound_by_flops() -> None:
    device = devices()["h100-sxm-80gb"]
    latency = StepLatency(datasheet_profile("h100-sxm-80gb", MODEL, 1), MODEL)
    tokens = 4096
    matrices = sum(linear.inputs * linear.outputs for linear in MODEL.linears() if linear.name != "lm_head")
    flops = 2 * tokens * MODEL.layers * matrices + 2 * MODEL.layers * MODEL.heads * MODEL.head_dim * tokens**2
    # What is above the peak is the norms and activations, which no FLOP rate hides.
    assert flops / device.flops <= latency.step([(tokens, 0)], 0, 0) <= 1.15 * flops / device.flops


def test_a_datasheet_says_what_it_is() -> None:
    latency = StepLatency(datasheet_profile("l40s", MODEL, 2), MODEL, 2)
    notes = {assumption.name: assumption for assumption in latency.assumptions}
    assert notes["profile"].source == "datasheet"
    assert "upper bound on speed, nothing measured" in notes["profile"].note
    assert {"engine.collectives", "engine.host_overhead"} <= notes.keys()


def test_block_count_is_the_one_vllm_found() -> None:
    """vLLM 0.19 on an RTX 4090, Llama-3.1-8B, utilization 0.9, 2048 tokens, 256 sequences: 2588 blocks of 16."""
    blocks, terms = kv_block_count("rtx-4090", MODEL, 1, 16, 0.9, 2048)
    assert blocks == pytest.approx(2588, rel=0.01)
    value = {term.name: float(term.value) for term in terms}
    rest = value["memory.device"] * 0.9 - sum(
        value[f"memory.{name}"] for name in ("weights", "activation_peak", "non_torch")
    )
    assert 0 <= rest - blocks * 16 * MODEL.kv_bytes_per_token() < 16 * MODEL.kv_bytes_per_token()
    assert value["memory.weights"] == MODEL.weight_bytes()


def test_block_count_of_a_profile_is_that_of_its_device() -> None:
    profile = datasheet_profile("h100-sxm-80gb", MODEL, 1)
    assert kv_block_count(profile, MODEL, 1, 16, 0.9, 8192) == kv_block_count("h100-sxm-80gb", MODEL, 1, 16, 0.9, 8192)


def test_no_room_and_no_natural_size() -> None:
    with pytest.raises(UserError, match=r"Llama-3.1-70B at tp = 1 leaves no room"):
        kv_block_count("h100-sxm-80gb", load_model("Llama-3.1-70B"), 1, 16, 0.9, 8192)
    cpu: Profile = datasheet_profile("l40s", MODEL, 1)
    cpu.device_memory = None
    with pytest.raises(UserError, match="must give kv_blocks"):
        kv_block_count(cpu, MODEL, 1, 16, 0.9, 8192)
