"""What only a pruned model runs is measured where it is asked for, and then used."""

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refused

from calibrate.layer_use import layer_use
from calibrate.microbench import pruned, pruned_attention, workbench
from calibrate.microbench.grid import cpu_grid, quick_grid
from calibrate.microbench.measure import measure
from calibrate.microbench.registry import MICROBENCHES
from calibrate.model import ModelShape
from calibrate.profile import Profile
from calibrate.pruned_latency import PrunedLatency
from calibrate.pruning import Pruning

TINY = ModelShape("tiny", 32, 2, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)


def test_nobody_measures_it_unasked() -> None:
    for bench in (pruned, pruned_attention):
        assert bench in MICROBENCHES
        assert bench.points(cpu_grid()) == bench.held_out(cpu_grid()) == []
    points = pruned_attention.points(replace(cpu_grid(), pruning=True))
    assert {point["kind"] for point in points} == {"int8", "fp8", "heavy_hitters"}
    decodes = {point["n_decode"] for point in points if point["n_decode"]}
    assert {min(cpu_grid().decodes), max(cpu_grid().decodes)} <= decodes


def test_a_profile_that_holds_it_is_asked_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "_CPU_POOL_BYTES", 1 << 20)
    grid = replace(
        quick_grid(),
        tokens=[1, 16],
        sequences=[1, 4],
        chunks=[1, 16],
        prefill_contexts=[0, 16],
        decodes=[1, 4],
        decode_contexts=[0, 32],
        step_sequences=[1],
        step_extra=[0],
        held_out_tokens=[],
        held_out_sequences=[],
        held_out_prefills=[],
        held_out_decodes=[],
        held_out_copies=[],
        held_out_steps=[],
        copy_bytes=[4096],
        budget=0.001,
        pruning=True,
    )
    out = tmp_path / "p"
    measure(TINY, device="cpu", tp=1, threads=1, grid=grid, block_size=16, out=out, force=False)
    profile = Profile.load(out)
    assert (profile.table("pruned")["seconds"] > 0).all() and (profile.table("pruned_attention")["seconds"] > 0).all()
    assert profile.errors["pruned"]["points"] == len(profile.table("pruned"))
    for pruning, shares in (
        (Pruning(2, group=2, kv_dtype="int8"), None),
        (Pruning(2, budget=32, recent=16), None),
        (Pruning(2, exits=(0,), confidence=0.5), (1.0, 0.5)),
        (Pruning(2, similarity=0.9), (1.0, 0.5)),
    ):
        law = PrunedLatency(profile, TINY, use=layer_use(pruning, 16, shares))
        kernels = [assumption for assumption in law.assumptions if assumption.name.startswith("kernel.")]
        assert kernels and all(kernel.value == "measured" for kernel in kernels)
        assert law.step([(8, 0)], 3, 60) > 0.0


@pytest.mark.parametrize(
    "arguments", [("--device", "cuda", "--model", "tiny-llama"), ("--device", "cpu", "--collectives")]
)
def test_pruning_is_measured_on_a_cpu_alone(arguments: tuple[str, ...], tmp_path: Path) -> None:
    said = refused("calibrate", "run", *arguments, "--pruning", "-o", str(tmp_path / "p"))
    assert "--pruning times what a CPU runs of a model; expected --device cpu and --model" in said
