"""What several test files share."""

import pytest


@pytest.fixture(scope="session")
def playground(tmp_path_factory):
    """One server for all tests of the playground: starting one takes seconds."""
    from playground import Server, save_two

    server = Server(*map(str, save_two(tmp_path_factory.mktemp("playground"))))
    yield server
    server.end()
