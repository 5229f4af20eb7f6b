"""The command line `allmende GROUP VERB`: which groups there are, and how a failure is told.

A group's module is imported only when one of its commands runs, so `allmende wallet balance` never waits for
the network stack of a node. The table below holds each group's place and one-line help, therefore
`allmende --help` imports none of them.

Exit statuses: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 the node can't be reached,
4 rejected by the rules, 70 a bug, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NamedTuple

import click

from node.errors import UserError
from node.terminal import make_printable

EXIT_USER_ERROR = 1
EXIT_REJECTED = 4
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TRACEBACK_VARIABLE = "ALLMENDE_TRACEBACK"


class GroupEntry(NamedTuple):
    """Where a group's click object is (`module:attribute`), and what `allmende --help` says about it."""

    target: str
    help: str


GROUPS = {
    "wallet": GroupEntry("node.wallet.cli:group", "Your keys, balance, payments and history."),
    "budget": GroupEntry("node.wallet.cli_budget:group", "Compute budgets: ask for one, see what is left."),
    "offers": GroupEntry("node.wallet.cli_offers:command", "Machines that donors lend now, and their price."),
    "job": GroupEntry("node.wallet.cli_job:group", "Plan, run, watch and fetch computations."),
    "receipt": GroupEntry("node.wallet.cli_receipt:group", "Check a receipt, offline, trusting no node."),
    "donor": GroupEntry("node.donor.cli:group", "Lend a machine: when, to whom, and what it earns."),
    "charter": GroupEntry("node.operator.cli_charter:group", "Found a federation, and change its charter."),
    "node": GroupEntry("node.cli_node:group", "Run an institution's node and look after it."),
    "member": GroupEntry("node.operator.cli_member:group", "What this institution decides as a member."),
    "evidence": GroupEntry("node.operator.cli_evidence:group", "Proofs of wrongdoing: list, export, check offline."),
    "program": GroupEntry("node.operator.cli_program:group", "Compute budgets that this institution gives."),
}


class LazyGroup(click.Group):
    """The top-level group: knows its commands from `GROUPS` and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = GROUPS.get(cmd_name)
        if entry is None:
            return None
        module_name, attribute = entry.target.split(":")
        command = getattr(import_module(module_name), attribute)
        assert isinstance(command, click.Command), f"{entry.target} is no click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in GROUPS.items()])

    def invoke(self, ctx: click.Context) -> None:
        # What a command returns is no exit status: that comes from ctx.exit or from an exception alone.
        super().invoke(ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="allmende", message="allmende %(version)s")
def cli() -> None:
    """A ledger of compute credits that a federation of institutions keeps together.

    People hold and redeem credits, donors lend machines, institutions give budgets. For example:

    \b
        allmende wallet balance
        allmende job run train.yaml
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status. Every failure is caught and told here, in one place."""
    as_json = "--json" in arguments
    try:
        status = cli.main(list(arguments), prog_name="allmende", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`| head`); without this Python would complain once more while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER_ERROR
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        if TRACEBACK_VARIABLE in os.environ:
            raise
        return report(error, as_json)
    return status if isinstance(status, int) else 0


def report(error: BaseException, as_json: bool) -> int:
    """Tell a failure on standard error, as one line or one JSON document, and return its exit status.

    Of several failures that happened together (an exception group) a bug is told first: it must not hide.
    """
    failures = [_describe(leaf) for leaf in _iterate_leaves(error)]
    status, message = min(failures, key=lambda failure: failure[0] != EXIT_BUG)
    if as_json:
        import json

        click.echo(json.dumps({"error": message, "exit_status": status}), err=True)
        return status
    if isinstance(error, click.UsageError):
        error.show()  # with the usage line and a hint at --help
    elif status == EXIT_INTERRUPTED:
        click.echo("Interrupted.", err=True)
    else:
        click.echo(f"Error: {message}", err=True)
    return status


def _iterate_leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _iterate_leaves(member)
    else:
        yield error


def _describe(error: BaseException) -> tuple[int, str]:
    """Exit status and one line for one exception."""
    from protocol.errors import InvalidInput, Rejected

    match error:
        case UserError():
            return error.exit_status, _compute_line(str(error))
        case Rejected():
            return EXIT_REJECTED, _compute_line(f"rejected by the rules: {error}")
        case InvalidInput():
            return EXIT_USER_ERROR, _compute_line(str(error))
        case click.ClickException():
            return error.exit_code, _compute_line(error.format_message())
        case KeyboardInterrupt() | click.Abort():
            return EXIT_INTERRUPTED, "interrupted"
        case OSError() if error.strerror:
            place = f"{error.filename}: " if error.filename else ""
            return EXIT_USER_ERROR, _compute_line(f"{place}{error.strerror}")
        case _:
            return EXIT_BUG, _compute_line(
                f"this is a bug of allmende ({type(error).__name__}: {error}); "
                f"set {TRACEBACK_VARIABLE}=1 to see where it happened, and report it"
            )


def _compute_line(text: str) -> str:
    return make_printable(" ".join(text.split()))
