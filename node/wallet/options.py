"""The options that the commands of a person share, and the wallet that they open."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from node.terminal import CommandFunction, confirm, dry_run_option, home_option, json_option, yes_option

if TYPE_CHECKING:
    from node.keystore import Passphrase
    from node.wallet.wallet import Wallet

NODE_VARIABLE = "ALLMENDE_NODE"


def node_option(command: CommandFunction) -> CommandFunction:
    """`--node`, handed over as `node_url`: the node that is asked, this time."""
    return click.option(
        "--node",
        "node_url",
        metavar="URL",
        envvar=NODE_VARIABLE,
        show_envvar=True,
        help="Ask this node instead of the wallet's own.",
    )(command)


def passphrase_option(command: CommandFunction) -> CommandFunction:
    """`--passphrase-file`, handed over as `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Read the passphrase from a file (mode 0600) instead of asking; or set ALLMENDE_PASSPHRASE.",
    )(command)


def wait_option(command: CommandFunction) -> CommandFunction:
    """`--wait`, handed over as `wait_seconds`."""
    return click.option(
        "--wait",
        "wait_seconds",
        type=click.FloatRange(0, 600),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the proof that it is final.",
    )(command)


def choice_options(command: CommandFunction) -> CommandFunction:
    """`--donor` and `--prefer`: which of the machines that can do a job is asked."""
    command = click.option(
        "--prefer",
        type=click.Choice(["expected-cost", "price", "reliability", "local"]),
        default="expected-cost",
        show_default=True,
        help="What counts first: cost until it is done, price, the donor's record, or your own institution's machines.",
    )(command)
    return click.option(
        "--donor", default="", metavar="WHO", help="Ask this donor only: its address, or the machine's name."
    )(command)


class Signing(NamedTuple):
    """What a person said of a command that signs: with which wallet, and whether really."""

    home: Path
    node_url: str | None
    passphrase_file: Path | None
    dry_run: bool
    yes: bool
    as_json: bool

    def open_wallet(self) -> Wallet:
        """The wallet that signs. Raises: UserError."""
        from node.wallet.wallet import Wallet

        return Wallet.open(self.home, self.node_url)

    @property
    def passphrase(self) -> Passphrase:
        """Where the passphrase comes from."""
        return make_passphrase(self.passphrase_file)

    def confirm(self, question: str) -> None:
        """Return when the person agrees. Raises: UserError."""
        confirm(question, self.yes)


def signing_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that signs, handed over as one `signing`; `--wait` is for those that wait."""

    @wraps(command)
    def hand_over(*arguments: Any, **values: Any) -> None:
        signing = Signing(**{name: values.pop(name) for name in Signing._fields})
        command(*arguments, signing=signing, **values)

    options = (home_option, node_option, passphrase_option, dry_run_option, yes_option, json_option)
    for option in reversed(options):
        hand_over = option(hand_over)
    return hand_over


def make_passphrase(file: Path | None) -> Passphrase:
    """Where the passphrase comes from: the file, else the environment, else the person."""
    from node.keystore import Passphrase

    return Passphrase(file)
