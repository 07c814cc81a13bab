"""The error a user can cause: one line, exit code 2."""

import click


class UserError(click.ClickException):
    """A mistake in the input, said in one line: file, row or key, what was found, what was expected."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"simctl: {self.format_message()}", err=True)
