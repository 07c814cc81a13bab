"""The roofline of published figures, and the KV blocks that a device has room for."""

import pytest

from calibrate.datasheet import datasheet_profile, device_like, devices
from calibrate.latency import StepLatency
from calibrate.memory import activation_peak, kv_block_count
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


@pytest.mark.parametrize("name", sorted(devices()))
def test_a_device_goes_by_its_aliases_however_they_are_spelled(name: str) -> None:
    device = devices()[name]
    for known in (device.name, *device.aliases):
        for spelled in (known, known.upper(), known.lower(), known.replace(" ", "_"), known.replace("-", "")):
            assert device_like(spelled) is device, spelled


@pytest.mark.parametrize("name", ["", "unknown GPU", "H100 PCIe", "RTX409", "NVIDIA"])
def test_a_name_of_no_bundled_device_is_none(name: str) -> None:
    assert device_like(name) is None


def test_no_two_devices_share_a_name() -> None:
    names = [name for device in devices().values() for name in (device.name, *device.aliases)]
    assert all(device_like(name) is not None for name in names)
    assert len(names) == len(set(names))


EXPERTS = load_model("Qwen3-30B-A3B")


def terms_of(data: int, tp: int = 1) -> dict[str, float]:
    _, terms = kv_block_count("h100-sxm-80gb", EXPERTS, tp, 16, 0.9, 2048, data=data)
    return {term.name.removeprefix("memory."): float(term.value) for term in terms}


@pytest.mark.parametrize("data", [1, 2, 4, 8])
def test_engines_that_share_experts_hold_a_part_of_them_each(data: int) -> None:
    alone, shared = terms_of(1), terms_of(data)
    assert alone["weights"] == EXPERTS.weight_bytes()
    others = EXPERTS.expert_bytes() * (1 - 1 / data)
    assert shared["weights"] == pytest.approx(alone["weights"] - others, abs=1)
    assert shared["weights"] > alone["weights"] - EXPERTS.expert_bytes()
    assert (shared["kv_blocks"] > alone["kv_blocks"]) == (data > 1)


def test_a_rank_of_both_holds_its_part_of_its_engines_part() -> None:
    both, sharded = terms_of(2, tp=2), terms_of(1, tp=2)
    assert sharded["weights"] - both["weights"] == pytest.approx(EXPERTS.expert_bytes() / 4, abs=1)
    assert both["non_torch"] == terms_of(4)["non_torch"] > terms_of(1)["non_torch"], "NCCL, by how many ranks there are"


def test_the_blocks_are_what_the_terms_leave() -> None:
    """CUDA graphs are a term of nothing: they are captured after the pool was sized."""
    for data in (1, 2):
        value = terms_of(data)
        assert value.keys() == {"device", "weights", "activation_peak", "non_torch", "graph_pool", "kv_blocks"}
        assert value["graph_pool"] == 0.0
        taken = sum(value[name] for name in ("weights", "activation_peak", "non_torch", "graph_pool"))
        block = 16 * EXPERTS.kv_bytes_per_token()
        assert 0 <= 0.9 * value["device"] - taken - block * value["kv_blocks"] < block


def test_the_activation_peak_is_an_mlp_or_the_sampler() -> None:
    """At least both, and rising with either limit; few sequences leave the MLP as the larger."""
    few, many = (activation_peak(MODEL, 1, 16384, sequences) for sequences in (1, 1024))
    assert few == 16384 * (2 * MODEL.hidden + 3 * MODEL.intermediate) * 2
    assert many == 16384 * MODEL.hidden * 2 + 1024 * MODEL.vocab * 32
    assert activation_peak(MODEL, 1, 16, 1024) == 16 * MODEL.hidden * 2 + 16 * MODEL.vocab * 32, "a token a sequence"
    assert activation_peak(EXPERTS, 1, 65536, 1) == 65536 * (2 * EXPERTS.hidden + 3 * 8 * EXPERTS.moe_intermediate) * 2
