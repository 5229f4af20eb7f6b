"""The settings say what runs a donor's jobs."""

from __future__ import annotations

import msgspec
import pytest

from node.donor.executors.choosing import make_executor
from node.donor.executors.sandbox import Sandbox
from node.donor.executors.slurm import SlurmExecutor
from node.donor.executors.slurm_settings import SlurmSettings
from node.errors import UserError
from tests.node.donor.conftest import SETTINGS

CLUSTER = SlurmSettings("/scratch/allmende", partition="spare", prefix=["nsenter", "--net=/run/netns/cluster"])


def test_a_machine_runs_jobs_itself_unless_its_owner_says_otherwise(donor_home):
    donor_home.save_settings(SETTINGS)
    settings = donor_home.load_settings()
    assert settings == SETTINGS
    executor = make_executor(settings.executor, donor_home.sandbox, settings.slurm)
    assert isinstance(executor, Sandbox)


def test_a_cluster_is_reached_as_the_settings_say(donor_home):
    settings = msgspec.structs.replace(SETTINGS, executor="slurm", slurm=CLUSTER)
    donor_home.save_settings(settings)
    assert donor_home.load_settings() == settings
    assert isinstance(make_executor(settings.executor, donor_home.sandbox, settings.slurm), SlurmExecutor)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"executor": "kubernetes"}, "sandbox, slurm"),
        ({"executor": "slurm"}, "table"),
        ({"slurm": SlurmSettings("scratch")}, "absolute"),
        ({"slurm": SlurmSettings("/scratch", poll_seconds=0)}, "above 0"),
    ],
)
def test_settings_that_lead_nowhere_are_refused_in_one_line(donor_home, changes, hint):
    donor_home.save_settings(msgspec.structs.replace(SETTINGS, **changes))
    with pytest.raises(UserError, match=hint):
        donor_home.load_settings()
