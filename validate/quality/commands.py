"""`simctl validate train` and `simctl validate quality`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from calibrate.model import load_model
from calibrate.quality import QualityTable, read_quality
from ground.errors import UserError
from ground.folder import new_folder
from ground.progress import progress_bar
from validate.measure import Machine

_path = click.Path(path_type=Path)
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; without it torch's own number.")


@click.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Steps of training; without it as many as it takes to learn.")
@_threads
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@click.option("-o", "--output", type=_path, required=True, help="Folder of the weights.")
def train(seed: int, steps: int | None, threads: int | None, force: bool, output: Path) -> None:
    """Train a small language model on the text that comes with Python, in minutes on two cores.

    Writes model.safetensors, config.json and training.json. Name the folder as a scenario's model, and the real engine
    finds its weights.
    """
    Machine("cpu", threads).facts()  # refuses where torch is missing, and sets the threads
    from validate.quality.language_model import SHAPE
    from validate.quality.text import python_text
    from validate.quality.train import Training, train_to

    training = Training(seed=seed) if steps is None else Training(seed=seed, steps=steps)
    with new_folder(output, force=force) as partial, progress_bar() as bar:
        corpus = python_text()
        task = bar.add_task("training", total=training.steps, note="")
        smoothed: list[float] = []

        def on_step(bits: float) -> None:
            smoothed.append(bits)
            recent = smoothed[-50:]
            bar.update(task, advance=1, note=f"{sum(recent) / len(recent):.2f} bits a byte")

        try:
            facts = train_to(partial, training, corpus=corpus, shape=SHAPE, on_step=on_step)
        except KeyboardInterrupt:
            bar.stop()
            click.echo("interrupted: nothing was written", err=True)
            raise SystemExit(130) from None
    bits = facts["held_out_bits_per_byte"]
    assert isinstance(bits, dict)
    told = ", ".join(f"{name} {value:.2f}" for name, value in bits.items())
    click.echo(f"{output / 'model.safetensors'} (bits a byte of held-out text: {told})")


@click.command()
@click.argument("study", type=_path)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@_threads
@click.option("--weights", type=_path, help="Safetensors file or folder; without it what lies beside the model.")
@click.option("-o", "--output", type=_path, required=True, help="Folder of quality.json and report.html.")
def quality(study: Path, device: str, threads: int | None, weights: Path | None, output: Path) -> None:
    """Measure what each pruning of STUDY costs, a scenario, sweep or search, on held-out text that comes with Python.

    The pruned model and the unpruned read the same text. Writes quality.json, which a scenario's key `quality` names.
    Policies that are in it already are kept: the same command goes on where it was interrupted.
    """
    machine = Machine(device, threads, weights)
    machine.facts()
    from validate.quality.measure import measure
    from validate.quality.policies import pruned_model
    from validate.quality.report import show, write_quality_report
    from validate.quality.text import python_text

    pruned = pruned_model(study)
    machine = machine.with_weights_of(pruned.model)
    if machine.weights is None:
        raise UserError(f"{pruned.model}: no weights lie beside it; expected some, or --weights")
    path = output / "quality.json"
    known = read_quality(path) if path.exists() else None
    with progress_bar() as bar:
        task = bar.add_task("policies", total=len(pruned.policies), note="")

        def on_policy(table: QualityTable) -> None:
            output.mkdir(parents=True, exist_ok=True)
            table.write(path)
            bar.advance(task)

        try:
            table = measure(
                load_model(pruned.model),
                machine.weights,
                pruned.policies,
                python_text(only_held_out=True),
                device=device,
                known=known,
                on_policy=on_policy,
            )
            write_quality_report(table, output / "report.html")
        except OSError as error:
            raise UserError(f"{output}: cannot be written ({error.strerror})") from error
        except KeyboardInterrupt:
            bar.stop()
            click.echo("interrupted: what was measured is kept; the same command goes on", err=True)
            raise SystemExit(130) from None
    show(table, Console())
    click.echo(str(path))
