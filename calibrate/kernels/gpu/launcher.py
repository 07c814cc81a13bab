"""Launches of kernels that were compiled before, without Triton's own look-up.

A step that is not replayed from a graph launches some hundred kernels, and Triton takes about as long to find each of
them as a GPU takes to run it: the GPU would wait for the host.
"""

from __future__ import annotations

from typing import Any

import torch


class Launcher:
    """A Triton kernel whose compile-time constants are the last of its parameters."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: tuple[Any, ...], **options: Any
    ) -> None:
        """Launch on the current stream; both tuples in the order of the kernel's parameters, the first one a tensor.

        `options` are Triton's: num_warps, num_stages, launch_pdl.
        """
        key = (arguments[0].device, constants, *options.values(), *[_kind(argument) for argument in arguments])
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *constants)
            return
        compiled = self._kernel[grid](*arguments, *constants, **options)
        if compiled is not None:  # Triton's interpreter compiles nothing
            self._compiled[key] = compiled


def _kind(argument: Any) -> Any:
    """What Triton compiles a kernel anew for."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)


def power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << (number - 1).bit_length()
