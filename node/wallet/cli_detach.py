"""The commands that leave a running job to the home node and take it back."""

from __future__ import annotations

from pathlib import Path

import click

from node.errors import UserError
from node.terminal import confirm, emit, home_option, json_option, yes_option
from node.wallet.options import node_option


@click.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@yes_option
@json_option
def detach(job_id: str, home: Path, node_url: str | None, yes: bool, as_json: bool) -> None:
    """Leave a running job to your node, so that this computer may be switched off.

    The node answers the donor's meter with the job's own key, for no more than was put aside for this job. It can't
    read the results.

    Example: allmende job detach 3fa2c81b90
    """
    from node.wallet.detaching import describe_trust, hand_over
    from node.wallet.job_records import load_job
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        job = load_job(wallet, job_id)
        if not job.started_at_seconds or job.has_ended:
            raise UserError(f"job {job.job_id} does not run ({job.state}): only a running job can be left to your node")
        confirm(f"Leave job {job.job_id} ({job.name}) to {wallet.node_url}?", yes)
        hand_over(wallet, job)
        emit({"job": job.job_id, "until": job.detached_until_seconds}, describe_trust(wallet, job), as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@home_option
@node_option
@json_option
@click.pass_context
def attach(context: click.Context, job_id: str, home: Path, node_url: str | None, as_json: bool) -> None:
    """Take a job back from your node, see how it went, and watch it to its end: as `job logs -f` does it.

    Example: allmende job attach 3fa2c81b90
    """
    assert context.parent is not None
    assert isinstance(context.parent.command, click.Group)
    logs = context.parent.command.commands["logs"]
    context.invoke(logs, job_id=job_id, home=home, node_url=node_url, follow=True, as_json=as_json)
