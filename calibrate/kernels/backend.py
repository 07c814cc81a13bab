"""Which kernels a device runs: Triton's on a GPU, torch's own elsewhere."""

import torch

# Triton's interpreter takes tensors of the CPU: who wants that, a test, adds "cpu" here.
TRITON_DEVICES = {"cuda"}


def uses_triton(device: torch.device) -> bool:
    """Whether tensors of this device go through `calibrate.kernels.gpu`; only then is Triton imported."""
    return device.type in TRITON_DEVICES
