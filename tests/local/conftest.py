import pytest
from local_world import LocalWorld


@pytest.fixture
def world(tmp_path):
    made = LocalWorld(tmp_path / "state")
    yield made
    made.leave_nothing()
