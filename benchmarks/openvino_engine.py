"""OpenVINO GenAI's continuous batching, driven line by line: run by the interpreter that has it.

Reads JSON objects from standard input, one a line, and answers each with one. The first says how to start; every other
names a measurement (see `Engine`). Runs without this project, which its interpreter does not have.

One `step()` of the pipeline is one iteration. What is timed as a step goes on until its tokens are in hand, as a client
would have them; all times are seconds of one of the clocks below.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import openvino
import openvino_genai

_SPIN = 0.001  # a sleep may overshoot by a scheduler tick; the last millisecond is spun


class WallClock:
    """Real time."""

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, when: float) -> None:
        coarse = when - self.now() - _SPIN
        if coarse > 0:
            time.sleep(coarse)
        while self.now() < when:
            pass


class ProcessClock:
    """The CPU time of this process, and no time at all for waiting: it stands still while others have the core.

    With one thread and a core of its own a process takes as much CPU time as real time, so this is the clock of that
    process on a machine that nobody shares, but for what others do to the caches.
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.process_time() + self._ahead

    def wait_until(self, when: float) -> None:
        self._ahead += max(0.0, when - self.now())


CLOCKS = {"wall": WallClock, "process": ProcessClock}


class Engine:
    """One pipeline. Of `start`: gguf, threads, core (to run on, or null), clock, vocabulary, block and batch limits."""

    def __init__(self, start: dict[str, Any]) -> None:
        if start["core"] is not None:
            os.sched_setaffinity(0, {start["core"]})
        self._clock = CLOCKS[start["clock"]]()
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = start["kv_blocks"]
        scheduler.max_num_batched_tokens = start["max_num_batched_tokens"]
        scheduler.max_num_seqs = start["max_num_seqs"]
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_NUM_THREADS": start["threads"],
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # the process has its core already
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(start["gguf"], scheduler, "CPU", properties)
        self._random = np.random.default_rng(0)
        self._vocabulary = start["vocabulary"]
        self._requests = 0
        self._live: dict[int, Any] = {}  # number → handle
        self._tokens: dict[int, int] = {}  # number → tokens generated so far

    def prefill(self, tokens: int) -> dict[str, Any]:
        """A prompt alone in the engine: the seconds of its only step."""
        self._add(self._prompt(tokens), 1)
        began = self._clock.now()
        self._step()
        seconds = self._clock.now() - began
        if self._live:
            raise RuntimeError(f"a prompt of {tokens} tokens took more than one step")
        return {"seconds": seconds}

    def decode(self, batch: int, context: int, steps: int) -> dict[str, Any]:
        """`batch` equal prompts, decoded together: of each step in which they all decode and nothing else happens,
        its seconds and the cached tokens that it reads, summed. The first one comes right behind a prefill."""
        numbers = [self._add(self._prompt(context), 1 << 16) for _ in range(batch)]
        while not all(self._tokens[number] for number in numbers):
            self._step()
        seconds, cached = [], []
        for _ in range(steps):
            cached.append(sum(context + self._tokens[number] - 1 for number in numbers))
            began = self._clock.now()
            self._step()
            seconds.append(self._clock.now() - began)
        for number in numbers:
            self._live.pop(number).stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return {"seconds": seconds, "cached": cached}

    def replay(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Serve requests {due, prompt, output_tokens}, ordered by due, on a clock that starts at 0.

        Each is added at the first step boundary after it is due. Answers: of each request [first_token, finish,
        tokens]; the lateness of those that an idle engine waited for; steps, and the seconds they took; CPU time.
        """
        coming = deque(enumerate(requests))
        inside: dict[int, int] = {}  # number → index
        first: dict[int, float] = {}
        answers: list[list[float]] = [[] for _ in requests]
        late, steps, busy, cpu = [], 0, 0.0, time.process_time()
        origin = self._clock.now()
        while coming or inside:
            if not inside:
                due = coming[0][1]["due"]
                self._clock.wait_until(origin + due)
                late.append(self._clock.now() - origin - due)
            now = self._clock.now() - origin
            while coming and coming[0][1]["due"] <= now:
                index, request = coming.popleft()
                prompt = np.array([request["prompt"]], dtype=np.int64)
                inside[self._add(prompt, request["output_tokens"])] = index
            began = self._clock.now()
            finished = self._step()
            ended = self._clock.now()
            steps, busy = steps + 1, busy + ended - began
            for number in inside:
                if number not in first and self._tokens[number]:
                    first[number] = ended - origin
            for number in finished:
                answers[inside.pop(number)] = [first.pop(number), ended - origin, self._tokens[number]]
        cpu = time.process_time() - cpu
        return {"requests": answers, "late": late, "steps": steps, "busy": busy, "cpu": cpu}

    def _add(self, prompt: np.ndarray, tokens: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        self._requests += 1
        number = self._requests
        self._live[number] = self._pipeline.add_request(number, openvino.Tensor(prompt), config)
        self._tokens[number] = 0
        return number

    def _prompt(self, tokens: int) -> np.ndarray:
        return self._random.integers(0, self._vocabulary, (1, tokens), dtype=np.int64)

    def _step(self) -> list[int]:
        """One iteration, and its tokens; returns who finished."""
        self._pipeline.step()
        finished = []
        for number, handle in self._live.items():
            while handle.can_read():
                for output in handle.read().values():
                    self._tokens[number] += len(output.generated_ids)
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                finished.append(number)
        for number in finished:
            del self._live[number]
        return finished


def main() -> None:
    # The library prints on standard output; what it says there must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if engine is None:
            engine = Engine(asked)
            answer: dict[str, Any] = {"openvino-genai": openvino_genai.__version__, "openvino": openvino.__version__}
        else:
            measurement = {"prefill": engine.prefill, "decode": engine.decode, "replay": engine.replay}
            answer = measurement[asked.pop("measure")](**asked)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
