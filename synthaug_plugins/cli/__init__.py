"""The `synthaug` command: thin shells over the functions of the rooms below. Heavy imports happen inside each command."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import typer.main
from typer.core import TyperGroup

from synthaug_plugins.cli import images, planning, handover, evaluating, auditing, reporting, importing, learning, training, tuning, installation  # noqa: F401  importing adds their commands  # isort: skip
from synthaug_plugins.cli.app import app, parse_options, spread_cfg_options
from synthaug_plugins.errors import Stopped, SynthAugError

__all__ = ['STOPPING', 'app', 'every_command', 'main', 'parse_options', 'spread_cfg_options']


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command."""
_ONCE_S = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line: refusals become one line on standard error and their own exit status; so does what the system forbids to read."""
    from synthaug_plugins.plugins import get_plugin_manager

    received: list[int] = []
    first = 0.0

    def stop(number: int, frame: object) -> None:
        nonlocal first
        if received and time.monotonic() - first < _ONCE_S:
            return  # the terminal and torchrun, say, both sent one: what is being tidied up is not interrupted
        received.append(number)
        first = time.monotonic()
        raise KeyboardInterrupt

    for number in STOPPING:  # cluster schedulers send SIGTERM: end as Ctrl-C does
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it, and as shells start what is in the background
            signal.signal(number, stop)
    get_plugin_manager().hook.synthaug_add_commands(app=app)
    try:
        app(spread_cfg_options(sys.argv[1:] if arguments is None else arguments))
    except SynthAugError as error:
        print(f'synthaug: {str(error).removeprefix("synthaug: ")}', file=sys.stderr)
        sys.exit(128 + received[0] if received and isinstance(error, Stopped) else error.exit_code)
    except PermissionError as error:  # of a folder that the user named, wherever it is met first
        where = repr(error.filename) if error.filename else 'A file'
        print(f'synthaug: {where} cannot be used: {error.strerror}. Give a place that you may read and write, or ask for the right.', file=sys.stderr)
        sys.exit(SynthAugError.exit_code)
    except SystemExit as end:
        if received and end.code == Stopped.exit_code:  # where a command has nothing to say about going on
            sys.exit(128 + received[0])
        raise


def every_command() -> dict[str, Any]:
    """All commands by their whole names, such as `learn edm`; a group's commands in place of the group."""

    def walk(group: TyperGroup, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, command in group.commands.items():
            found |= walk(command, f'{prefix}{name} ') if isinstance(command, TyperGroup) else {prefix + name: command}
        return found

    return walk(typer.main.get_command(app), '')  # type: ignore[arg-type]
