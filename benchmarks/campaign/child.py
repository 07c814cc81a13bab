"""One part in a process of its own: `python -m campaign.child PART OUT DEVICE UNTIL` writes `OUT/.PART.result.json`.

What it has found by then is in the result also when it was stopped. A kernel that fails takes its process's CUDA
context with it, and a part's memory must not weigh on the next one's: so every part has a process for itself.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Compiled code must not be found in a cache on the disk when the time that compiling takes is measured.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")


def main(name: str, out: Path, device: str, until: float) -> int:
    from campaign.work import Skip, TimeUp, Work, write_json
    from ground.errors import UserError

    begin = time.perf_counter()
    work = Work(device, out, until, found_before(out, name))
    outcome: dict[str, Any] = {"status": "done"}
    try:
        from campaign.machine import ClockWatch, facts

        if device == "cpu":
            import torch

            torch.set_num_threads(1)  # as in the calibration
        outcome["machine"] = facts(device)
        watch = ClockWatch(device)
        try:
            with watch:
                importlib.import_module(f"campaign.{name}").run(work)
        finally:
            outcome["clocks"] = watch.summary
    except Skip as skip:
        outcome |= {"status": "skipped", "reason": str(skip)}
    except TimeUp as stop:
        outcome |= {"status": "stopped", "reason": f"{stop}; the same command goes on"}
    except UserError as error:
        outcome |= {"status": "failed", "reason": error.message}
    except KeyboardInterrupt:
        outcome |= {"status": "stopped", "reason": "time is up; what was measured is kept, the same command goes on"}
    except Exception as error:  # what went wrong on a machine that is gone an hour later must be in the file
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        outcome |= {"status": "failed", "reason": reason, "traceback": traceback.format_exc().splitlines()[-12:]}
    outcome["found"] = work.found
    outcome["seconds"] = round(time.perf_counter() - begin, 3)
    write_json(out / f".{name}.result.json", outcome)
    return 0


def found_before(out: Path, name: str) -> dict[str, Any]:
    """What the part had found when it was stopped; nothing if it begins, or begins anew."""
    path = out / "campaign.json"
    part = json.loads(path.read_text(encoding="utf-8"))["parts"].get(name, {}) if path.is_file() else {}
    return dict(part.get("found", {})) if part.get("status") == "stopped" else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
