"""The network of the LSTM forecaster (Hochreiter and Schmidhuber, 1997), and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

HIDDEN = 32
_EPOCHS = 80
_PATIENCE = 12  # epochs without a better validation loss
_WINDOWS = 2048  # of the training windows, drawn anew each epoch: an epoch takes as long on a week as on a month
_BATCH = 128
_RATE = 3e-3
_VALIDATION = 0.2  # the share of windows, the latest ones, that says when to stop
_SMALLEST, _LARGEST = -5.0, 1.0  # the logarithm of a deviation, in deviations of the history


@dataclass(frozen=True)
class Windows:
    """Training examples, normalised: `past` (n, window), `season_ago` (n, horizon, or 0 columns where there is no
    season): the load a season before the targets; `target` (n, horizon)."""

    past: torch.Tensor
    season_ago: torch.Tensor
    target: torch.Tensor


class Network(nn.Module):
    """From the past to a mean and a logarithm of the deviation for each interval of the horizon.

    It begins as the naive forecast: the last load, with the deviation of the whole history.
    """

    def __init__(self, horizon: int, seasonal: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.mix = nn.Linear(HIDDEN + (horizon + 1 if seasonal else 1), HIDDEN)
        self.out = nn.Linear(HIDDEN, 2 * horizon)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, past: torch.Tensor, season_ago: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, (state, _) = self.lstm(past[:, :, None])
        last = past[:, -1:]
        mixed = torch.relu(self.mix(torch.cat((state[0], last, season_ago), dim=1)))
        change, deviation = self.out(mixed).chunk(2, dim=1)
        return last + change, deviation.clamp(_SMALLEST, _LARGEST)


def train(windows: Windows, seed: int) -> Network:
    """A network trained on all but the latest windows, as it was when it predicted those best.

    Loss: the negative logarithm of the normal likelihood. The same windows and seed give the same network.
    """
    count, horizon = windows.target.shape
    validation = max(1, int(count * _VALIDATION))
    # A training target must not be seen in the validation, so as many windows between them are left out.
    training = max(1, count - validation - horizon)
    random = np.random.default_rng(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(horizon, seasonal=windows.season_ago.shape[1] > 0)
        optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
        best, since, kept = float("inf"), 0, _copy(network)
        for _ in range(_EPOCHS):
            chosen = random.permutation(training)[:_WINDOWS]
            for start in range(0, len(chosen), _BATCH):
                loss = _loss(network, windows, torch.from_numpy(chosen[start : start + _BATCH]))
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
            with torch.no_grad():
                found = _loss(network, windows, torch.arange(count - validation, count)).item()
            since += 1
            if found < best:
                best, since, kept = found, 0, _copy(network)
            if since >= _PATIENCE:
                break
    network.load_state_dict(kept)
    return network.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, on any machine; and so small a network is faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(network: Network, windows: Windows, chosen: torch.Tensor) -> torch.Tensor:
    mean, deviation = network(windows.past[chosen], windows.season_ago[chosen])
    errors = (windows.target[chosen] - mean) * torch.exp(-deviation)
    return (0.5 * errors**2 + deviation).mean()


def _copy(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
