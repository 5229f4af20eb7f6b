"""Donors checked by other donors: the same inputs elsewhere, and jobs whose result is known before."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from node.cli import run
from node.errors import UserError
from node.wallet.canaries import Verdict, judge, write_canary
from node.wallet.job_records import list_jobs
from node.wallet.job_spec import read_job_file
from node.wallet.jobs import ANY_MACHINE, open_job, plan_job
from node.wallet.rechecking import plan_recheck
from node.wallet.running import Watcher, run_to_end
from protocol.conversation import decode_script
from protocol.metering import JobState

ANSWER = {"answer": b"42\n", "log.txt": b"done\n"}


@pytest.fixture
def allmende(wallet, stage, monkeypatch, capsys):
    """Run a command of this wallet; (exit status, its JSON or nothing, what it told)."""
    monkeypatch.setattr("node.client.NodeClient", lambda place: stage)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(stage, "close", lambda: None, raising=False)

    def call(*words):
        capsys.readouterr()
        status = run([*words, "-y", "--json", "--home", str(wallet.home)])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else None, printed.err

    return call


@pytest.fixture
def finished(wallet, stage, write_job):
    """A job that a donor called `first` has done."""
    stage.add("first", (JobState.DONE, ANSWER, {}), weight=500)
    job = open_job(wallet, plan_job(wallet, write_job()), lambda _: stage)
    run_to_end(wallet, wallet.unlock(None), job, lambda _: stage, Watcher())
    return job


def test_two_donors_that_compute_the_same_are_said_to_be_equal(stage, finished, allmende):
    second = stage.add("second", (JobState.DONE, ANSWER, {}))
    status, found, _ = allmende("job", "recheck", finished.job_id)
    assert (status, found["is_equal"], found["same"]) == (0, True, ["answer", "log.txt"])
    assert second.inputs == stage.players[0].inputs
    status, shown, _ = allmende_show(allmende, found["recheck"])
    assert shown["recheck_of"] == finished.job_id


def allmende_show(allmende, job_id):
    status, shown, told = allmende("job", "fetch", job_id, "--to", "/nonexistent")
    return status, shown, told
