"""The `refold` command: parse, dispatch, and one message for each error.

Commands are loaded when they are called: help must not wait for a Kafka client.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

__all__ = ["app", "exit_code", "exit_codes", "main", "tell_all"]


def _version() -> str:
    from importlib.metadata import version

    return version("refold")


app = App(
    name="refold",
    help="Fold a Kafka event topic into read models, and rebuild them from history.",
    version=_version,
    version_flags=["--version", "-V"],
)
for one in (app, app.meta):
    one.suppress_keyboard_interrupt = False  # `main` says what was interrupted

COMMANDS = {
    "demo": "Fold a year of real flights live, rebuild from the beginning, and compare the two byte for byte.",
    "run": "Fold a topic into read models, from where the state is, until stopped.",
    "worker": "Fold, rebuild, watch and serve all projections of a service, with other workers, until stopped.",
    "rebuild": (
        "Fold a projection again: the whole topic into new read models, or from where a rebuild was interrupted."
    ),
    "apply": "Make a rebuild as refold rebuild --plan-out wrote it down, without asking.",
    "resume": "Go on with a rebuild beside the live generation that was paused, or whose process is gone.",
    "pause": "Have a rebuild beside the live generation wait, whoever drives it; `refold resume` goes on with it.",
    "cancel": "Give a rebuild beside the live generation up: nothing is left of it, and readers see no change.",
    "verify": "Compare a generation with the active one, as of the same positions, while both are folded.",
    "switch": "Approve a rebuild that waits for it: the new generation becomes the one that is read.",
    "rollback": "Make the generation active again that was so before the last switch.",
    "retire": "Remove generations that are kept: their groups, their models and their snapshots.",
    "get": "Print read models as JSON, as last committed, also while they are being folded.",
    "query": 'Print the models of which some conditions hold, one JSON object a line: {"id": …, "model": …}.',
    "dump": 'Print all read models, one JSON object a line: {"id": …, "model": …}, by partition and then by id.',
    "count": "Print how many read models a projection has, as last committed.",
    "status": "Print how far a projection is folded: position, end, lag, models and owner of each partition.",
    "lag": "Print how far consumer groups are behind: records, seconds, retention's margin, members, rate, time left.",
    "reset-offsets": (
        "Set the offsets of a consumer group that nobody is in, in the words of kafka-consumer-groups.sh."
    ),
    "describe": (
        "Print what a projection's state is of: code, codec, topic, build, directory, size, and the last rebuild."
    ),
    "list": (
        "Print every generation that refold.toml, the state directory, the registry or the cluster's groups know."
    ),
    "doctor": "Look over everything: brokers, rights, topics, groups, registry, state, snapshots, clocks and disk.",
    "explain": (
        "Print the history of a model: each event that touched it, and what it changed, by the code as it is now."
    ),
    "preview": (
        "Fold a sample of streams with the code as it is now, and show which stored models would differ, and how."
    ),
    "dead-letters": "List, show, retry or drop events that could not be folded, and those that wait behind them.",
    "snapshots": (
        "Take, list, restore or prune snapshots: read models as of one position of each partition, to go on from later."
    ),
    "load": "Write the events of a file to a topic, each once, the events of a stream in order.",
    "schema": 'Print the JSON Schema of what a command prints with --json, by the name that is in its "schema".',
    "broker": "Run a real single-node Kafka on this machine, for trying things out, until Ctrl-C.",
}
"""Each command with the first line of its help, which is that of its function."""

_PLACES = {
    "list": "list:list_",
    "dead-letters": "dead_letters:dead_letters",
    "reset-offsets": "reset_offsets:reset_offsets",
    **{name: f"generations:{name}" for name in ("resume", "pause", "cancel", "verify", "switch", "rollback", "retire")},
}
for name, text in COMMANDS.items():
    app.command(f"streams.cli.{_PLACES.get(name, f'{name}:{name}')}", name=name, help=text)
app.register_install_completion_command(
    "install-completion", help="Install completion for your shell (bash, zsh, fish, PowerShell)."
)


_DRAWING = (("demo",), ("rebuild",), ("resume",), ("switch",))
"""Commands that show what they are at; the others log it."""
_SHOWN = ("partition.halted", "rebuild.waits", "rebuild.failed")
"""What the bar, or the message at the end, says too."""


@app.command(name="help")
def help_(*command: str) -> None:
    """Print the help of a command, or this one.

    Args:
        command: Which command's.
    """
    tell_all(*command[:1])
    app.help_print(command)


def tell_all(*names: str) -> None:
    """Have the help of commands say all that their functions do, and not only the line by which they are listed.

    Their modules are imported for that.

    Args:
        names: Which.
    """
    for name in names:
        if name in COMMANDS:
            app[name].help = None


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, Parameter(env_var="REFOLD_LOG_LEVEL")
    ] = None,
    log_format: Annotated[Literal["console", "json"] | None, Parameter(env_var="REFOLD_LOG_FORMAT")] = None,
    log_modules: Annotated[str, Parameter(env_var="REFOLD_LOG")] = "",
) -> None:
    """Set up logging, then run the command.

    Args:
        tokens: The command and its options.
        log_level: What to log, on standard error; by default info, and warning where a bar is drawn there.
        log_format: Columns, or one JSON object a line; by default columns on a terminal.
        log_modules: Other levels for some modules and those below them: MODULE=LEVEL,… as in streams.control=debug.
    """
    from streams import log
    from streams.errors import ConfigError

    try:
        modules = log.parse_modules(log_modules)
    except ValueError as error:
        raise ConfigError(f"--log-modules (REFOLD_LOG) cannot be read: {error}.") from error

    draws = tokens[:1] in _DRAWING or (tokens[:1] == ("run",) and sys.stderr.isatty())
    log.configure(
        level=log_level or ("warning" if draws else "info"),
        style=log_format,
        shown_elsewhere=_SHOWN if draws and log_level != "debug" else (),
        modules=modules,
    )
    command, bound, _ = app.parse_args(tokens)  # imports the command's modules
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on an interrupt is the command's to heed
    command(*bound.args, **bound.kwargs)


def exit_codes() -> list[tuple[type[BaseException], int]]:
    """Give what a script can tell apart; the first that fits counts."""
    from projections.registry import ResolveError
    from streams import errors

    return [
        (errors.ConfigError, 2),
        (errors.GroupActive, 3),
        (errors.StoreLocked, 3),
        (errors.RebuildRunning, 3),
        (errors.NotReady, 3),
        (errors.HistoryIncomplete, 4),
        (errors.AccessDenied, 5),
        (errors.TopicNotFound, 6),
        (errors.ModelNotFound, 6),
        (errors.StateNotFound, 6),
        (errors.GenerationNotFound, 6),
        (errors.GroupNotFound, 6),
        (ResolveError, 6),
        (errors.BrokerUnavailable, 7),
        (errors.PlanStale, 8),
        (errors.PartialFailure, 9),
        (errors.DeadLettersLeft, 9),
        (errors.ApprovalPending, 10),
        (errors.ModelsDiffer, 10),
        (errors.RebuildCancelled, 130),
        (KeyboardInterrupt, 130),
        (Exception, 1),
    ]


def exit_code(error: BaseException) -> int:
    """Give the exit code of an error."""
    return next(code for kind, code in exit_codes() if isinstance(error, kind))


def main() -> None:
    """Run the command line. An error of ours is one message and an exit code, with no stack trace but the user's own.

    At log level debug, the whole one comes before the message. An error that is none of ours is a fault of ours, and
    keeps its stack trace.
    """
    try:
        if {"--help", "-h"} & set(sys.argv):
            tell_all(*sys.argv[1:])
        app.meta()
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if not _is_told(error):
            raise
        _tell(error)
        sys.exit(exit_code(error))


def _is_told(error: BaseException) -> bool:
    """Whether an error's message is written for the user."""
    from projections.datasets import DatasetError
    from projections.fingerprint import StaleSource
    from projections.registry import ResolveError
    from streams.errors import CqrsError

    return isinstance(error, (CqrsError, ResolveError, StaleSource, DatasetError, KeyboardInterrupt))


def _tell(error: BaseException) -> None:
    import traceback

    from streams import log

    if log.is_debug():
        traceback.print_exception(error)
    elif trace := getattr(error, "user_traceback", ""):
        print(trace, file=sys.stderr, end="")  # noqa: T201
    print(f"refold: {str(error) or 'interrupted'}", file=sys.stderr)  # noqa: T201
