"""The group of all verbs: their order in the help, where they are defined, and how errors are printed."""

import difflib
import errno
import importlib
import os
import tempfile
from typing import Any

import click

from cifar_mlflow.environment import rank, rank_prefix
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.interrupt import Interrupted, terminable

# The verbs in working order.
VERB_GROUPS = {
    "Train": ("demo", "data", "review", "train", "runs", "evaluate"),
    "Search": ("tune",),
    "Ship": ("register", "promote", "rollback", "models", "export"),
    "Serve": ("serve", "classify", "monitor"),
}
# The module of each verb of other packages. They are imported by name, because this package does not depend
# on tuning and serving.
VERBS_ELSEWHERE = {
    "review": "cifar_mlflow.review.cli",
    "runs": "cifar_mlflow.tracking.cli",
    "models": "cifar_mlflow.tracking.cli",
    "tune": "tuning.cli",
    "register": "serving.cli",
    "promote": "serving.cli",
    "rollback": "serving.cli",
    "classify": "serving.cli",
    "serve": "serving.cli",
    "monitor": "serving.cli",
    "demo": "serving.cli",
}


class Group(click.Group):
    """A group that prints errors for the user in one form."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if not ctx.resilient_parsing and args[0][:1] != "-" and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"there is no command {args[0]}: {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with terminable():
                return super().invoke(ctx)
        except CifarError as error:
            _report(str(error))
            ctx.exit(error.exit_code)
        except click.UsageError as error:  # in the form of our own errors
            message = error.format_message()
            if isinstance(error, click.NoSuchOption) and not error.possibilities and error.ctx:
                message += _option_about(error.option_name, error.ctx.command)
            # The parser of a verb does not tell in which context it failed.
            command = error.ctx.command_path if error.ctx else f"{ctx.command_path} {ctx.invoked_subcommand}"
            _report(f"{message}\n`{command} --help` lists the options.")
            ctx.exit(error.exit_code)
        except OSError as error:
            # A full disk, or a place that is closed to the user; others are defects.
            is_closed = isinstance(error, PermissionError) and error.filename is not None
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not is_closed:
                raise
            _report(f"{error.filename or tempfile.gettempdir()}: {error.strerror}")
            ctx.exit(1)
        except Interrupted as interruption:
            ctx.exit(128 + interruption.signum)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


class Verbs(Group):
    """The group of all verbs; it imports those of other packages when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verbs in VERB_GROUPS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := VERBS_ELSEWHERE.get(cmd_name):
            command: click.Command = getattr(importlib.import_module(module), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, verbs in VERB_GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), self._summary(ctx, verb)) for verb in verbs])

    def _summary(self, ctx: click.Context, verb: str) -> str:
        """Return the first paragraph of the help of a verb."""
        command = self.get_command(ctx, verb)
        return " ".join(((command and command.help) or "").strip().partition("\n\n")[0].split())


def _option_about(unknown: str, command: click.Command) -> str:
    """Suggest the first option with all words of an unknown one in its help: --lr for --learning-rate."""
    words = unknown.strip("-").lower().split("-")
    options = [param for param in command.params if isinstance(param, click.Option)]
    about = [option for option in options if all(word in (option.help or "").lower() for word in words)]
    return f" Did you mean {about[0].opts[0]}?" if about else ""


def _report(error: str) -> None:
    """Print an error; if `mlflow run` created a run, tag it with the error."""
    click.echo(f"{rank_prefix()}Error: {error}", err=True)
    if "MLFLOW_RUN_ID" in os.environ and rank() == 0:  # otherwise spare the slow import
        from cifar_mlflow.tracking.lifecycle import tag_project_run

        tag_project_run(error)
