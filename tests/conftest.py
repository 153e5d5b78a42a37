"""What several test files share."""

import os
from unittest import mock

import pytest
from hypothesis import settings

# As in the commands: beside any other work, actors at Ray's niceness of 15 hardly get to run.
os.environ.setdefault("RAY_worker_niceness", "0")

# On a busy machine an example may take any time.
settings.register_profile("here", deadline=None)
settings.load_profile("here")


# The files that take longest, longest first; files are the unit that workers take (`--dist
# loadfile`), so a long one at the end would leave the other workers idle. Seconds on two cores in
# the tier full: 340 to 100; all others take less.
LONGEST_FIRST = (
    *("test_faults", "test_resume", "test_tune", "test_run", "test_cluster_run", "test_monitoring"),
    *("test_offline", "test_algorithm", "test_storage", "test_serve", "test_benchmark_rows"),
    *("test_new_task", "test_examples", "test_responses", "test_api", "test_export"),
    *("test_outside_networks", "test_playground_page", "test_trackers"),
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


TASKS_OF_FILES = {}  # path of a test file: the tasks there are once it is imported


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file is imported while it is collected; what it registers is its own."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    from toolagent.tasks import TASKS

    with mock.patch.dict(TASKS):
        report = yield
        TASKS_OF_FILES[collector.path] = dict(TASKS)
    return report


@pytest.fixture(scope="module", autouse=True)
def tasks_of_this_file_only(request):
    """A task that a file's tests register is not there for the next file's."""
    from toolagent.tasks import TASKS

    with mock.patch.dict(TASKS, TASKS_OF_FILES.get(request.path, {})):
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine take 100 times as long as none."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """Ray in this process, with two CPUs."""
    import ray

    from toolagent.cluster.ray_session import quiet

    quiet()
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def playground(tmp_path_factory):
    """One server for all tests of the playground: starting one takes seconds."""
    from playground import Server, save_two

    server = Server(*map(str, save_two(tmp_path_factory.mktemp("playground"))))
    yield server
    server.end()
