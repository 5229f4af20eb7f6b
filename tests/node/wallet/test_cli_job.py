"""The commands of a job with several donors, as a person and as a program uses them."""

from __future__ import annotations

import pytest

from node.wallet.job_records import list_jobs
from node.wallet.job_turns import NOTE_NAME, take_turn
from node.wallet.jobs import hold_job, open_job, plan_job, start_job
from protocol.metering import JobState
from tests.node.wallet.played_donors import Act

DONE: Act = (JobState.DONE, {"answer": b"42\n"}, {})
FAILED: Act = (JobState.DONOR_FAILED, {}, {})


@pytest.fixture
def file(write_job):
    return str(write_job(secrets="{TOKEN: hush-hush}").path)


def test_a_run_goes_on_with_another_donor_and_its_results_are_written(stage, allmende, file, tmp_path):
    stage.add("weak", FAILED, weight=999)
    stage.add("strong", DONE)
    status, found, told = allmende("job", "run", file, "-y", "--to", str(tmp_path / "made"))
    assert (status, found["machine"], found["ended"]) == (0, "strong", "DONE"), told
    assert (tmp_path / "made" / "answer").read_text() == "42\n"
    _, shown, _ = allmende("job", "show", found["job"])
    assert shown["runs"] == [found["retry_of"], found["job"]]
    _, listed, _ = allmende("job", "ls")
    links = {job["job"]: job["retried_as"] for job in listed["jobs"]}
    assert links == {found["retry_of"]: found["job"], found["job"]: None}
    assert "hush-hush" not in str((shown, listed, told))


def test_a_run_without_retries_ends_with_what_can_be_done_and_is_gone_on_with_by_hand(stage, allmende, file):
    stage.add("weak", FAILED, weight=999)
    stage.add("strong", DONE)
    status, first, _ = allmende("job", "run", file, "-y", "--retries", "0")
    assert (status, first["ended"], first["has_inputs"]) == (1, "DONOR_FAILED", True)
    status, tried, _ = allmende("job", "retry", first["job"], "--dry-run")
    assert (status, tried["dry_run"], tried["machine"]) == (0, True, "strong")
    status, second, _ = allmende("job", "retry", first["job"], "-y")
    assert (status, second["retry_of"], second["ended"]) == (0, first["job"], "DONE")


def test_a_person_chooses_the_donor(stage, allmende, file):
    stage.add("cheap", DONE, weight=10)
    stage.add("dear", DONE)
    _, planned, _ = allmende("job", "plan", file, "--donor", "dear")
    assert planned["machine"] == "dear"
    status, found, _ = allmende("job", "run", file, "-y", "--donor", planned["donor"])
    assert (status, found["machine"]) == (0, "dear")


@pytest.fixture
def waiting(stage, wallet, write_job):
    """A job that was started and that no command follows."""
    stage.add("bench", "wait")
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), lambda _: stage)
    hold_job(wallet, wallet.unlock(None), job, spec)
    start_job(wallet, job, lambda _: stage)
    return job


def test_a_job_that_nobody_follows_is_cancelled_fetched_in_vain_and_forgotten(stage, wallet, waiting, allmende):
    status, found, _ = allmende("job", "cancel", waiting.job_id, "-y")
    assert (status, found["ended"], found["state"]) == (0, "CANCELLED", "SETTLED")
    with pytest.raises(AssertionError, match="has handed over no checkpoint"):
        allmende("job", "fetch", waiting.job_id, "--checkpoint")
    status, found, _ = allmende("job", "rm", waiting.job_id, "-y")
    assert (status, list_jobs(wallet)) == (0, [])


def test_a_job_that_is_followed_is_cancelled_by_the_command_that_follows_it(wallet, waiting, allmende):
    with take_turn(wallet, waiting.job_id):
        status, found, _ = allmende("job", "cancel", waiting.job_id, "-y", "--reason", "enough")
    assert (status, found["ended"]) == (0, None)
    assert (wallet.home / "jobs" / waiting.job_id / NOTE_NAME).read_text() == "enough"
