"""Triton's compiler takes every launch of the GPU's kernels for an H100, at the sizes of real models; none is needed.

The compiler and the interpreter do not live in one process, so this runs in one of its own: there a driver that
launches nothing stands for the GPU's.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# (query heads, KV heads, head_dim, hidden, intermediate): Llama-3.1-8B's; and sizes that are no power of two.
SIZES = [(32, 8, 128, 4096, 14336), (14, 2, 80, 1120, 1000)]
SHARED_MEMORY = 227 * 1024  # of a block on compute capability 9.0 (CUDA C++ programming guide, table of capabilities)


def test_every_launch_compiles_for_an_h100_within_its_registers(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    worker = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert worker.returncode == 0, worker.stderr
    kernels = [json.loads(line) for line in worker.stdout.splitlines()]
    names = {kernel["name"] for kernel in kernels}
    assert names == {
        "_add_rmsnorm",
        "_attend_part",
        "_best_of_all",
        "_best_of_pieces",
        "_merge_parts",
        "_prefill_attention",
        "_qk_norm",
        "_rotary_write",
        "_silu_mul",
        "_skinny_linear",
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY
        # A register that spills lies on the stack. With half the warps a prefill's are short, and it is faster still.
        assert kernel["stack"] == 0 or kernel["name"] == "_prefill_attention", kernel
        assert kernel["stack"] <= 256, kernel
    # The tensor cores' own instructions, and copies past the registers: what the kernels' speed rests on.
    assert all(kernel["wgmma"] for kernel in kernels if kernel["name"] == "_prefill_attention")
    assert all(kernel["wgmma"] and kernel["copies"] for kernel in kernels if kernel["name"] == "_skinny_linear")
    assert all(kernel["mma"] and kernel["copies"] for kernel in kernels if kernel["name"] == "_attend_part")


class _Driver:
    """Says that it is an H100's, and launches nothing."""

    def __init__(self, compiled: Any) -> None:
        self.utils = self
        self._compiled = compiled

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        self._compiled(name, binary, shared)
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None


def _report(name: str, binary: bytes, shared: int) -> None:
    """One line of what a kernel's machine code says, by the tools that come with Triton."""
    import triton

    file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    file.write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", "-sass", file], capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", text)
    assert stack is not None
    facts = {
        "name": name,
        "shared": shared,
        "stack": int(stack[1]),
        "wgmma": text.count("HGMMA"),
        "mma": text.count("HMMA"),
        "copies": text.count("LDGSTS.E.BYPASS.128"),
    }
    print(json.dumps(facts), flush=True)


def _launch_all() -> None:
    import torch
    from triton.runtime.driver import driver

    from calibrate.kernels import backend
    from calibrate.kernels.attention import paged_attention
    from calibrate.kernels.gpu import early_start
    from calibrate.kernels.gpu.paged_plan import plan_paged
    from calibrate.kernels.linear import gate_up_product, product
    from calibrate.kernels.qk_norm import qk_norm
    from calibrate.kernels.rmsnorm import add_rmsnorm
    from calibrate.kernels.rotary_write import rotary_write
    from calibrate.kernels.sampling import greedy
    from calibrate.kernels.silu_mul import silu_mul

    driver.set_active(_Driver(_report))
    early_start.starts_early = lambda device: True
    backend.TRITON_DEVICES.add("cpu")
    device = torch.device("cpu")
    for heads, kv_heads, head_dim, hidden, intermediate in SIZES:

        def new(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.bfloat16)

        qkv, norm = new(9, heads + 2 * kv_heads, head_dim), new(head_dim)
        cache = new(64, 2, kv_heads, head_dim)
        for parts in (new(1, 9, hidden), new(4, 9, hidden).float()):
            add_rmsnorm(parts, new(9, hidden), new(hidden), 1e-5)
        silu_mul(new(9, 2 * intermediate))
        qk_norm(qkv, norm, norm, heads, kv_heads, 1e-6)
        for parts in (qkv[None], new(4, *qkv.shape).float()):
            rotary_write(parts, new(9, 1, head_dim), new(9, 1, head_dim), cache, torch.zeros(9, dtype=torch.int32))
        for tokens in (1, 24, 64):
            product(new(tokens, hidden), new(hidden, hidden))
            product(new(tokens, 1536), new(1536, 1536))  # in parts of 384, which are six lines
            product(new(tokens, hidden), new(32064, hidden), in_parts=False)
            gate_up_product(new(tokens, hidden), new(2 * intermediate, hidden))
        greedy(new(3, 32064))
        # Decodes that are split beside a prefill, and too many to be worth a split.
        for new_tokens, contexts in (([1, 1, 7], [300, 200, 50]), ([1] * 32, [20] * 32)):
            blocks = [list(range(-(-context // 16))) for context in contexts]
            plan = plan_paged(
                new_tokens, contexts, blocks, heads=heads, kv_heads=kv_heads, block_size=16, device=device
            )
            paged_attention(new(sum(new_tokens), heads, head_dim), cache, 16, plan)


if __name__ == "__main__":
    _launch_all()
