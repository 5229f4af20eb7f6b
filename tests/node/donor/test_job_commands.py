"""The commands of a person who redeems credits, against a donor's agent with a real sandbox."""

from __future__ import annotations

import json
import shutil

import pytest
import trio

from node.cli import run

FUNDS = 10**6

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


@pytest.fixture
def allmende(wallet, fake_node, monkeypatch, capsys):
    """Run a command in a thread, as if in a process of its own; (exit status, what it printed)."""
    monkeypatch.setattr("node.client.NodeClient", lambda place: fake_node)
    home = str(wallet.home)

    async def call(*words):
        capsys.readouterr()
        with trio.fail_after(60):
            status = await trio.to_thread.run_sync(run, [*words, "--home", home])
        return status, capsys.readouterr()

    return call


async def test_a_person_plans_runs_fetches_and_proves_a_job(
    fake_node, person_key, donor_account, start_agent, allmende, write_job, tmp_path
):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    path = str(write_job("echo hello; printf '\\\\033[2J'; echo 42 > out/answer".replace("'", '"')))
    async with start_agent():
        status, printed = await allmende("offers")
        assert status == 0
        assert "bench" in printed.out
        status, printed = await allmende("job", "plan", path, "--json")
        assert status == 0
        assert json.loads(printed.out)["millicredits_max"] == 3750
        assert not fake_node.replica.ledger.holds
        status, printed = await allmende("job", "run", path)
        assert status == 1
        assert "needs -y" in printed.err
        assert not fake_node.replica.ledger.holds
        status, printed = await allmende("job", "run", path, "-y", "--to", str(tmp_path / "made"))
    assert status == 0, printed.err
    assert printed.out.startswith("hello\n")
    assert "\033" not in printed.out
    assert (tmp_path / "made" / "answer").read_text() == "42\n"
    status, printed = await allmende("job", "ls", "--json")
    (job,) = json.loads(printed.out)["jobs"]
    assert (job["state"], job["ended"], job["exit_status"], job["is_agreed"]) == ("SETTLED", "DONE", 0, True)
    assert job["paid_millicredits"] == fake_node.get_hold().paid
    status, printed = await allmende("job", "receipt", job["job"], "--out", str(tmp_path / "proof"))
    assert status == 0
    assert "signed by both sides" in printed.out
    proof = [str(tmp_path / f"proof.{part}") for part in ("settle", "hold", "job")]
    status, printed = await allmende("receipt", "verify", proof[0], "--hold", proof[1], "--job", proof[2])
    assert status == 0, printed.err
    status, printed = await allmende("job", "logs", job["job"][:5])
    assert printed.out.startswith("hello\n")
    status, printed = await allmende("job", "fetch", job["name"], "--to", str(tmp_path / "made"))
    assert status == 1
    assert "not an empty folder" in printed.err


async def test_a_job_that_fails_ends_the_command_with_status_one(
    fake_node, person_key, donor_account, start_agent, allmende, write_job
):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    async with start_agent():
        status, printed = await allmende("job", "run", str(write_job("exit 5")), "-y")
    assert status == 1
    assert "USER_FAILED, exit status 5" in printed.err
    assert "came back" in printed.out


async def test_what_does_not_exist_is_told_in_one_line(allmende, fake_node):
    status, printed = await allmende("job", "show", "nothing")
    assert (status, printed.err) == (1, "Error: this wallet has no job 'nothing': see `allmende job ls`\n")
    status, printed = await allmende("offers")
    assert printed.out == "No machine is offered at the moment.\n"
