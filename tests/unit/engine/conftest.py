import pytest

from tests.unit.engine.toys import CONFIG, Toys, running, runtime


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with running(tmp_path_factory.mktemp("run")) as engine:
        yield engine


@pytest.fixture
def private():
    """A folder for sockets of the test's own."""
    with runtime() as folder:
        yield folder


@pytest.fixture
def warm(engine, tmp_path):
    return Toys(tmp_path, dict(engine.environment), CONFIG)


@pytest.fixture
def cold(tmp_path):
    return Toys(tmp_path / "cold", {}, CONFIG | {"worker": "none"})
