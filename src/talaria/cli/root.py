"""The command line's root: its options, the home that commands work on, and errors in words."""

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import talaria
from talaria.model.config import Config
from talaria.model.errors import TalariaError

if TYPE_CHECKING:
    from talaria import app


F = TypeVar("F", bound=Callable[..., None])


def open_home(config: Config) -> "app.Home":
    """The home, whatever its state."""
    from talaria import app  # all rooms behind it take a second to import; `send`, `echo` and --help need none

    return app.Home(config)


class _Told(click.ClickException):
    """An error in words on stderr; exit code 1."""

    def show(self, file: Any = None) -> None:
        """Write it, without a traceback."""
        click.echo(f"talaria: {self.message}", err=True, file=file)


class _Group(click.Group):
    """Turns our own errors into words."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `TalariaError` becomes its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except TalariaError as error:
            raise _Told(str(error)) from error
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(1) from None
        except OSError as error:
            raise _Told(f"{error.filename or 'output'}: {error.strerror}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(talaria.__version__, prog_name="talaria")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The talaria.toml to use, instead of that of TALARIA_CONFIG or of the home.",
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Talaria, a DICOM orchestrator: receives, routes, processes and delivers studies."""
    context.obj = config


def load_config(context: click.Context) -> Config:
    """The configuration of this machine, from `--config` where that was given."""
    return Config.load(context.obj, os.environ)


def checked_home(context: click.Context) -> "app.Home":
    """The home, checked: set up, and of this schema."""
    home = open_home(load_config(context))
    home.verify()
    return home


def actor() -> str:
    """Whom the ledger names for what is done from here."""
    return f"local:{getpass.getuser()}"


def json_option(function: F) -> F:
    """The `--json` of every command that prints a table."""
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(function)
