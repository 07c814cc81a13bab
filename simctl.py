"""The command `simctl`: a click group that loads a room's commands only when one of them is called."""

import importlib

import click

# command → (module, object, one line for --help). The line stands here so that --help imports no room.
_COMMANDS = {
    "trace": ("traces.commands", "trace", "Read, describe, convert and synthesise request traces."),
    "calibrate": (
        "calibrate.commands",
        "calibrate",
        "Measure what a device can do, or show what was measured.",
    ),
    "run": ("sim.commands", "run", "Simulate one scenario."),
    "sweep": ("sim.commands", "sweep", "Simulate a study: many scenarios over a parameter space."),
    "search": ("sim.search_command", "search", "Look for the best settings of a scenario, under limits."),
    "capacity": (
        "sim.capacity_command",
        "capacity",
        "Find the largest rate that keeps the SLO, or the replicas for a rate.",
    ),
    "forecast": ("sim.forecast_command", "forecast", "Predict a trace's load, and compare with what came."),
    "diagnose": ("sim.diagnose_command", "diagnose", "Say what the requests of a run waited for, by cause."),
    "telemetry": ("sim.telemetry_command", "telemetry", "Write a run as OpenMetrics text and OpenTelemetry spans."),
    "validate": ("validate.commands", "validate", "Check predictions against a real engine."),
}


class _LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is resolved."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="simctl")
def main() -> None:
    """Predict what an LLM serving fleet will do, and check the prediction on a real engine."""


if __name__ == "__main__":
    main()
