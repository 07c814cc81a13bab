"""A kernel is looked up once for each thing that Triton compiles anew for, and then launched as it is."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.kernels.gpu.launcher import Launcher, power_of_two


class FakeKernel:
    """Tells what it was asked for. Indexed by a grid it compiles; what it compiled launches by the same grid."""

    def __init__(self, *, compiles: bool = True) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []
        self._compiles = compiles

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            self.asked.append((grid, arguments, options))
            return FakeCompiled(self) if self._compiles else None

        return run


class FakeCompiled:
    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *arguments: self._kernel.launched.append((grid, arguments))


def test_the_second_launch_goes_past_the_look_up_with_its_own_arguments_and_grid() -> None:
    kernel = FakeKernel()
    launcher = Launcher(kernel)
    first, second = torch.zeros(4), torch.ones(8)
    launcher((1, 2, 3), (first, 3), (7, True), num_warps=4)
    launcher((4, 5, 6), (second, 5), (7, True), num_warps=4)
    assert kernel.asked == [((1, 2, 3), (first, 3, 7, True), {"num_warps": 4})]
    assert kernel.launched == [((4, 5, 6), (second, 5, 7, True))]


@pytest.mark.parametrize(
    ("argument", "constant", "warps"),
    [
        (torch.zeros(4, dtype=torch.float16), 7, 4),
        (torch.zeros(5)[1:], 7, 4),  # its address is no multiple of 16 bytes
        (torch.zeros(4), 8, 4),
        (torch.zeros(4), 7, 8),
    ],
)
def test_what_is_compiled_anew_is_looked_up_anew(argument: torch.Tensor, constant: int, warps: int) -> None:
    kernel = FakeKernel()
    launcher = Launcher(kernel)
    launcher((1, 1, 1), (torch.zeros(4),), (7,), num_warps=4)
    launcher((1, 1, 1), (argument,), (constant,), num_warps=warps)
    assert len(kernel.asked) == 2 and not kernel.launched


@pytest.mark.parametrize(("first", "second"), [(1, 3), (16, 3), (3, 1 << 40)])
def test_integers_that_triton_tells_apart_are_told_apart(first: int, second: int) -> None:
    kernel = FakeKernel()
    launcher = Launcher(kernel)
    for number in (first, second):
        launcher((1, 1, 1), (torch.zeros(4), number), (), num_warps=4)
    assert len(kernel.asked) == 2


def test_an_interpreter_that_compiles_nothing_is_asked_every_time() -> None:
    kernel = FakeKernel(compiles=False)
    launcher = Launcher(kernel)
    for _ in range(2):
        launcher((1, 1, 1), (torch.zeros(4),), ())
    assert len(kernel.asked) == 2 and not kernel.launched


@given(st.integers(1, 1 << 40))
def test_power_of_two(number: int) -> None:
    power = power_of_two(number)
    assert power & (power - 1) == 0 and power // 2 < number <= power
