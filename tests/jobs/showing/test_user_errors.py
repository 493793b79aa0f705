import errno

import pytest
from ray.exceptions import RayTaskError

from promptmill.actors.flow.actor_slots import AbortError, StartError
from promptmill.actors.pool_sizes import ClusterError, ResourcesError
from promptmill.configs.errors import ConfigError
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.user_errors import cause_of, lines_of
from promptmill.manifests.rows import ManifestError
from promptmill.pipelines.work.errors import ModelError
from promptmill.shards.commits import CommitError
from promptmill.shards.lease import LeaseError
from promptmill.shards.parts import PartError

USAGE, FAILED = 2, 1
KINDS = [
    *((kind, USAGE) for kind in (ModelError, ResourcesError, ManifestError)),
    *((kind, FAILED) for kind in (CommitError, PartError, AbortError, StartError, LeaseError, ClusterError)),
]


@pytest.mark.parametrize(("kind", "status"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_what_a_user_can_cause_is_its_line_and_a_status(kind, status):
    assert lines_of(kind("x: is wrong")) == (status, ("x: is wrong",))


@pytest.mark.parametrize("kind", [ConfigError, PlanError])
def test_what_is_wrong_with_several_things_is_a_line_for_each(kind):
    assert lines_of(kind(["a: is wrong", "b: is wrong"])) == (USAGE, ("a: is wrong", "b: is wrong"))


def test_an_error_of_the_system_names_the_file():
    assert lines_of(PermissionError(errno.EACCES, "Permission denied", "/x")) == (FAILED, ("/x: Permission denied",))


@pytest.mark.parametrize("error", [KeyError("a bug"), AssertionError(), ValueError("a bug")])
def test_a_bug_is_none_of_a_users(error):
    assert lines_of(error) is None


def test_what_lies_within_a_group_or_an_error_of_a_task_is_what_counts():
    error = CommitError("x: is of another plan")
    remote = RayTaskError("assemble", "Traceback", error, "worker", 1, "127.0.0.1").as_instanceof_cause()
    for wrapped in (error, remote, ExceptionGroup("a", [ExceptionGroup("b", [remote])])):
        assert cause_of(wrapped) is error
    both = ExceptionGroup("a", [error, KeyError("a bug")])
    assert cause_of(both) is both
