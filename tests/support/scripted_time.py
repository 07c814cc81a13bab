"""Time that passes only by waiting, by steps and by their copies, for tests of the real engine without a device."""

from collections import Counter

import numpy as np


class StepTimes:
    """Seconds of a step, by its tokens and its context alone, so that a chunk of one token costs what a decode does."""

    asks_spread = False

    def step(self, prefills, decodes, kv_tokens, spread=None):
        tokens = sum(new for new, _ in prefills) + decodes
        context = sum(cached for _, cached in prefills) + kv_tokens
        if not tokens:
            return 0.0  # a step that only preempts
        return 1e-3 + 1e-5 * tokens + 1e-7 * context

    def decode_law(self, decodes):
        return None

    def swap(self, out, into):
        return 3e-4 * out + 2e-4 * into

    def decode_run(self, decodes, kv_tokens, steps, spread=None):
        return np.array([self.step([], decodes, kv_tokens + i * decodes) for i in range(steps)])


class FakeTime:
    """Clock, decoder and host memory in one: time passes only by waiting, by steps and by their copies."""

    seconds = None  # of copies: nobody measures them

    def __init__(self, block_size, ahead=False):
        self.block_size = block_size
        self.ahead = ahead
        self.time = 0.0
        self.launched = 0
        self.steps = 0
        self.copying = 0.0  # seconds of copies that the next step waits for

    def start(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wait_until(self, when):
        assert when >= self.time
        self.time = when

    def launch(self, batch):
        self.launched += 1
        step = FakeStep(self, batch, self.copying)
        self.copying = 0.0
        return step

    def swap_out(self, device, host):
        assert len(set(device)) == len(set(host)) == len(host)
        self.copying += StepTimes().swap(len(host), 0)
        return self

    def swap_in(self, host, device):
        assert len(set(device)) == len(set(host)) == len(host)
        self.copying += StepTimes().swap(0, len(host))
        return self

    def before_compute(self):
        pass

    def wait(self):
        self.time += self.copying
        self.copying = 0.0

    def run(self, batch):
        self.steps += 1
        written = Counter()
        for sequence in batch:
            assert sequence.tokens
            for position in range(sequence.start, sequence.start + len(sequence.tokens)):
                block, offset = divmod(position, self.block_size)
                written[sequence.blocks[block], offset] += 1
        assert max(written.values()) == 1, "two sequences write to one place in the KV cache"
        self.time += StepTimes().step([(len(s.tokens), s.start) for s in batch], 0, 0)
        return [0] * len(batch)


class FakeStep:
    """Runs when it is waited for, after all that were launched before it."""

    graph = False

    def __init__(self, decoder, batch, copying):
        self.decoder, self.batch, self.number, self.copying = decoder, batch, decoder.launched, copying

    def tokens(self):
        assert self.decoder.steps == self.number - 1
        self.decoder.time += self.copying
        return self.decoder.run(self.batch)
