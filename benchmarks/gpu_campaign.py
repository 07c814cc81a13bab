"""One sitting on a GPU: `python benchmarks/gpu_campaign.py --out DIR [--minutes 9] [--part NAME] [--device cpu]`.

Measures what the simulator has to know of a GPU, and how near its predictions come, part by part in order of worth
(`docs/gpu.md` says what each part does). A part that is done is not done again; one whose time is up keeps what it has,
and the same command goes on with it. `--device cpu` runs the same code at toy size.

It needs torch, triton, numpy, click, rich, pyyaml, simpy, polars and pydantic, and this repository as it is: nothing
has to be installed from it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
sys.path[:0] = [str(BENCHMARKS), str(ROOT)]

from campaign import PARTS  # noqa: E402
from campaign.child import found_before  # noqa: E402
from campaign.work import write_json  # noqa: E402

from ground.errors import UserError  # noqa: E402

_GRACE = 25.0  # seconds in which a part that was told to stop can write what it has
# What a part that is done again must not find.
_FOLDERS = {"profile": ("profile", "profile-second"), "check": ("check",), "recordings": ("recordings",)}
_LEAST = 15.0  # seconds below which no part is begun


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the results, new or to go on with."
)
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=9.0, show_default=True, help="Time for all."
)
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Only this one; may be repeated.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True)
@click.option("--pages", is_flag=True, help="Only write the check's HTML reports; needs plotly and no GPU.")
@click.option("--again", is_flag=True, help="Also do parts that are done.")
def main(out: Path, minutes: float, parts: tuple[str, ...], device: str, pages: bool, again: bool) -> None:
    """Measure a GPU and check the simulator's predictions on it."""
    until = time.time() + 60 * minutes
    if pages:
        write_pages(out.absolute())
        return
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no CUDA device here; expected one, or --device cpu")
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    campaign = read_campaign(out, device)
    wanted = [part for part in PARTS if not parts or part in parts]
    for part in wanted:
        if not again and campaign["parts"].get(part, {}).get("status") == "done":
            continue
        left = until - time.time()
        if left < _LEAST:
            campaign["parts"].setdefault(part, {"status": "skipped", "reason": "time was up before it began"})
        else:
            for folder in _FOLDERS.get(part, ()) if again else ():
                shutil.rmtree(out / folder, ignore_errors=True)
            # A part may take more than its share only of what nobody comes after it to use. A toy has no shares.
            share = left if part == wanted[-1] or device == "cpu" else min(left, PARTS[part])
            click.echo(f"{part}: at most {share:.0f} s", err=True)
            kept = {"found": found_before(out, part)}
            campaign["parts"][part] = kept | run_part(part, out, device, time.time() + share)
            campaign["machine"] = campaign["parts"][part].pop("machine", campaign["machine"])
        campaign["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(out / "campaign.json", campaign)
    show(campaign)
    if any(part["status"] == "failed" for part in campaign["parts"].values()):
        raise SystemExit(1)


def write_pages(out: Path) -> None:
    """The HTML reports of a campaign that was done elsewhere, perhaps on a machine without plotly."""
    from campaign import check
    from campaign.work import Skip, Work

    path = out / "campaign.json"
    if not path.is_file():
        raise UserError(f"{path}: is missing; expected the folder of a campaign")
    device = json.loads(path.read_text(encoding="utf-8"))["device"]
    try:
        check.write_pages(Work(device, out, time.time()))
    except Skip as skip:
        raise UserError(f"{out}: {skip}") from skip
    for page in sorted((out / "check").glob("*.html")):
        click.echo(str(page))


def read_campaign(out: Path, device: str) -> dict[str, Any]:
    """What `out` already holds, or a new campaign."""
    path = out / "campaign.json"
    if not path.is_file():
        if any(out.iterdir()):
            raise UserError(f"{out}: holds something else; expected a new folder, or that of a campaign")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"device": device, "begun": now, "finished": now, "machine": {}, "parts": {}}
    campaign: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if campaign["device"] != device:
        raise UserError(
            f"{out}: is a campaign with --device {campaign['device']}; expected the same, or another folder"
        )
    return campaign


def run_part(part: str, out: Path, device: str, until: float) -> dict[str, Any]:
    """A part in a process of its own, which is stopped when its time is up; what it found, or why it did not."""
    result = out / f".{part}.result.json"
    result.unlink(missing_ok=True)
    told = False
    command = [sys.executable, "-P", "-m", "campaign.child", part, str(out), device, str(until)]
    child = subprocess.Popen(command, env=environment(out))
    try:
        child.wait(max(0.0, until - time.time()))
    except KeyboardInterrupt:  # the child has it too, and keeps what it has
        child.wait(_GRACE)
        raise
    except subprocess.TimeoutExpired:
        told = True
        child.send_signal(signal.SIGINT)
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if not result.is_file() and told:
        return {"status": "stopped", "reason": "time was up before it had measured anything"}
    if not result.is_file():
        return {"status": "failed", "reason": f"its process ended with code {child.returncode} and left no result"}
    outcome: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return outcome


def environment(out: Path) -> dict[str, str]:
    """The children's: the repository is on their path, and states its version even where it is not installed."""
    paths = [str(BENCHMARKS), str(ROOT)]
    try:
        version("simctl")
    except PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        about = out / ".version" / f"simctl-{project['version']}.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: simctl\nVersion: {project['version']}\n"
        (about / "METADATA").write_text(text, encoding="utf-8")
        paths.append(str(about.parent))
    paths += [path for path in (os.environ.get("PYTHONPATH"),) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def show(campaign: dict[str, Any]) -> None:
    table = Table("part", "status", "seconds", "why")
    for part in PARTS:
        outcome = campaign["parts"].get(part, {"status": "not begun"})
        seconds = f"{outcome['seconds']:.0f}" if "seconds" in outcome else ""
        table.add_row(part, outcome["status"], seconds, outcome.get("reason", ""))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
