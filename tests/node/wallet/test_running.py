"""A job from its quote to its end: with donors that refuse, fail, take their machine back, or are told to stop."""

from __future__ import annotations

import pytest

from node.errors import UserError
from node.wallet import jobs
from node.wallet.calling import Line
from node.wallet.checkpoints import keep_checkpoint
from node.wallet.following import unpack_checkpoint, unpack_outputs
from node.wallet.job_records import get_checkpoint_path, get_inputs_path, list_jobs, load_job, remove_job
from node.wallet.job_turns import leave_note, take_turn, try_turn
from node.wallet.job_view import describe_job, iterate_jobs
from node.wallet.jobs import ANY_MACHINE, hold_job, open_job, plan_job, start_job
from node.wallet.retrying import compute_spent, list_runs, plan_retry
from node.wallet.running import Watcher, cancel_job, go_on, open_retry, retry_to_end, run_to_end
from protocol.conversation import Cancel, Start
from protocol.metering import JobState
from tests.node.wallet.played_donors import Act

DONE: Act = (JobState.DONE, {"answer": b"42\n"}, {})
FAILED: Act = (JobState.DONOR_FAILED, {}, {})
SAVED: Act = (JobState.EVICTED, {}, {"state": b"epoch 7"})


def get_end(wallet, job):
    receipt = job.decode_receipt(wallet)
    assert receipt is not None
    return receipt.state


@pytest.fixture
def told():
    return []


@pytest.fixture
def watcher(wallet, stage, told):
    """Notes what is told, and keeps checkpoints as the meter of the payer does."""

    def look(job):
        ticks = job.list_ticks()
        if ticks and ticks[-1].checkpoint and not get_checkpoint_path(wallet, job).exists():
            keep_checkpoint(wallet, job, Line(wallet, job, lambda _: stage), ticks[-1].checkpoint)

    return Watcher(tell=told.append, look=look)


@pytest.fixture
def start(wallet, stage, watcher, write_job):
    """Run a job to its end, with so many retries."""

    def act(retries=2, **fields):
        key = wallet.unlock(None)
        job = open_job(wallet, plan_job(wallet, write_job(**fields)), lambda _: stage, tell=watcher.tell)
        run_to_end(wallet, key, job, lambda _: stage, watcher)
        return retry_to_end(wallet, key, job, retries, ANY_MACHINE, lambda _: stage, watcher)

    return act


def test_a_donor_that_refuses_is_passed_over_and_only_the_one_that_works_is_paid(stage, start, told, federation):
    stage.add("cheap", "refuse", weight=500)
    stage.add("dear", DONE)
    job = start()
    assert (job.state, job.paid > 0) == ("SETTLED", True)
    assert len(federation.replica.ledger.holds) == 1
    assert any("cheap gave no quote" in line and "asking dear" in line for line in told)


def test_a_job_that_needs_a_network_asks_for_it_and_goes_where_there_is_one(stage, start):
    stage.add("offline", DONE, weight=10)
    stage.add("online", DONE, hosts=("pypi.org:443",))
    start(network="[pypi.org:443]")
    (conversation,) = stage.conversations
    assert (conversation.player.offer.machine, conversation.request.is_online) == ("online", 1)


def test_when_all_refuse_that_is_said_with_their_number_and_nothing_is_kept(stage, wallet, write_job):
    for number in range(5):
        stage.add(f"m{number}", "refuse")
    with pytest.raises(UserError, match=r"nothing was spent: it says: busy \(3 machines were asked\)"):
        open_job(wallet, plan_job(wallet, write_job()), lambda _: stage)
    assert len(stage.conversations) == 3
    assert list_jobs(wallet) == []
    assert list((wallet.home / "jobs").iterdir()) == []


def test_an_evicted_job_goes_on_elsewhere_from_its_checkpoint_for_what_is_left_of_time_and_credits(
    stage, start, wallet, told, tmp_path
):
    owner = stage.add("owner", SAVED, weight=999)
    other = stage.add("other", DONE)
    last = start()
    first, second = list_runs(wallet, last)
    assert (get_end(wallet, first), get_end(wallet, second)) == ("EVICTED", "DONE")
    assert "work/checkpoint/state" not in owner.inputs[0]
    assert other.inputs[0].pop("work/checkpoint/state") == b"epoch 7"
    assert other.inputs == owner.inputs
    assert second.decode_quote(wallet).wall_seconds == 98, "two seconds of 100 are saved"
    assert first.needs is not None
    assert first.needs.amount_max == 6250
    assert first.paid + second.decode_quote(wallet).amount_max <= first.needs.amount_max
    assert unpack_checkpoint(wallet, first, tmp_path / "kept") == 1
    assert unpack_outputs(wallet, second, tmp_path / "made") == 1
    assert any("going on from its last checkpoint" in line for line in told)


def test_a_job_without_a_checkpoint_starts_anew_and_its_first_run_cost_nothing(stage, start, wallet, told):
    stage.add("weak", FAILED, weight=999)
    stage.add("other", DONE)
    first, second = list_runs(wallet, start())
    assert first.paid == 0
    assert second.decode_quote(wallet).wall_seconds == 100
    assert any("there is no checkpoint" in line for line in told)


def test_runs_never_take_more_in_all_than_was_agreed_to_whatever_donors_settle(stage, start, wallet, told):
    for number in range(4):
        stage.add(f"greedy-{number}", FAILED, is_greedy=True)
    last = start(retries=3, max_credits="6.25")
    runs = list_runs(wallet, last)
    assert len(runs) == 4, told
    assert all(run.paid > 0 and run.dispute for run in runs)
    for number, run in enumerate(runs):
        assert compute_spent(wallet, runs[:number]) + run.decode_quote(wallet).amount_max <= 6250


def test_a_job_that_failed_by_itself_is_not_tried_again(stage, start):
    stage.add("one", (JobState.USER_FAILED, {}, {}))
    stage.add("two", (JobState.USER_FAILED, {}, {}))
    assert start().retry_of == ""
    assert len(stage.conversations) == 1


def test_without_another_donor_the_job_ends_and_can_be_gone_on_with_by_hand_later(stage, start, wallet, told, watcher):
    stage.add("only", FAILED)
    job = start()
    assert any("not gone on with" in line for line in told)
    assert get_inputs_path(wallet, job).exists()
    stage.add("new", DONE)
    later = open_retry(wallet, job, plan_retry(wallet, job, ANY_MACHINE), lambda _: stage, told.append)
    run_to_end(wallet, wallet.unlock(None), later, lambda _: stage, watcher)
    assert not get_inputs_path(wallet, job).exists()
    known = list_jobs(wallet)
    assert describe_job(wallet, job, known)["retried_as"] == later.job_id
    assert describe_job(wallet, later, known)["retry_of"] == job.job_id
    assert any(job.job_id in line and later.job_id in line for line in iterate_jobs(wallet, known))
    with pytest.raises(UserError, match="goes on already"):
        plan_retry(wallet, job, ANY_MACHINE)
    with pytest.raises(UserError, match="ended by itself"):
        plan_retry(wallet, later, ANY_MACHINE)


def test_a_hold_that_is_open_counts_in_full_against_what_another_run_may_take(stage, wallet, write_job):
    stage.add("silent", "wait")
    stage.add("other", DONE)
    spec = write_job(max_credits=7)
    job = open_job(wallet, plan_job(wallet, spec), lambda _: stage)
    hold_job(wallet, wallet.unlock(None), job, spec)
    plan = plan_retry(wallet, job, ANY_MACHINE)
    assert plan.amount_max <= 7000 - 6250
    spec = write_job()
    second = open_job(wallet, plan_job(wallet, spec), lambda _: stage)
    hold_job(wallet, wallet.unlock(None), second, spec)
    with pytest.raises(UserError, match="used up"):
        plan_retry(wallet, second, ANY_MACHINE)


@pytest.fixture
def waiting(stage, wallet, write_job):
    """A job that was started and that no command follows."""
    stage.add("bench", "wait")
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), lambda _: stage)
    hold_job(wallet, wallet.unlock(None), job, spec)
    start_job(wallet, job, lambda _: stage)
    return job


def test_a_job_that_nobody_follows_is_cancelled_and_seen_to_its_end(stage, wallet, waiting, watcher):
    ended = cancel_job(wallet, waiting.job_id, "enough", lambda _: stage, watcher)
    assert get_end(wallet, ended) is JobState.CANCELLED
    assert ended.state == "SETTLED"
    assert not get_inputs_path(wallet, waiting).exists()


def test_a_cancel_reaches_the_donor_through_the_command_that_follows_the_job(stage, wallet, waiting, told):
    def look(job):
        with try_turn(wallet, job.job_id) as is_free:
            assert not is_free
        if not job.ticks:
            leave_note(wallet, job, "enough")

    ended = go_on(wallet, waiting.job_id, lambda _: stage, Watcher(tell=told.append, look=look))
    assert stage.conversations[0].heard.count(Cancel) == 1
    assert get_end(wallet, ended) is JobState.CANCELLED


def test_a_job_that_was_paid_and_never_started_is_started_to_be_cancelled(stage, wallet, write_job, watcher):
    stage.add("bench", "wait")
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), lambda _: stage)
    hold_job(wallet, wallet.unlock(None), job, spec)
    ended = cancel_job(wallet, job.job_id, "", lambda _: stage, watcher)
    assert stage.conversations[0].heard[:2] == [Start, Cancel]
    assert ended.state == "SETTLED"


def test_two_commands_never_speak_for_one_job(wallet, stage, waiting, watcher):
    with take_turn(wallet, waiting.job_id), pytest.raises(UserError, match="another command follows"):
        go_on(wallet, waiting.job_id, lambda _: stage, watcher)


def test_secrets_are_with_the_donor_and_nowhere_here_once_the_job_is_over(stage, start, wallet, monkeypatch):
    monkeypatch.setenv("TOKEN", "hush-hush")
    player = stage.add("bench", DONE)
    job = start(secrets="{TOKEN: null}")
    assert b"hush-hush" in player.inputs[0]["job"]
    assert describe_job(wallet, job)["secrets"] == ["TOKEN"]
    kept = [path for path in wallet.home.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"hush-hush" in path.read_bytes()]


def test_a_job_that_can_not_be_paid_for_leaves_nothing_here_and_can_be_gone_on_with(stage, start, wallet, monkeypatch):
    stage.add("weak", FAILED, weight=999)
    stage.add("strong", DONE)
    first = start(retries=0)
    monkeypatch.setattr(jobs, "START_SECONDS_MIN", 10**6)
    with pytest.raises(UserError, match="has run out"):
        start()
    (kept,) = list_jobs(wallet)
    assert [path.name for path in (wallet.home / "jobs").iterdir()] == [first.job_id]
    monkeypatch.undo()
    assert plan_retry(wallet, kept, ANY_MACHINE).priced.offer.machine == "strong"


def test_a_job_is_forgotten_only_when_no_money_hangs_on_it(stage, wallet, waiting, watcher):
    with pytest.raises(UserError, match="still put aside"):
        remove_job(wallet, waiting)
    cancel_job(wallet, waiting.job_id, "", lambda _: stage, watcher)
    remove_job(wallet, load_job(wallet, waiting.job_id))
    assert list_jobs(wallet) == []
    assert not (wallet.home / "jobs" / waiting.job_id).exists()
