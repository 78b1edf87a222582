"""Places of both kinds."""

import pytest

from finetune_queue.storage import Place


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    """The same tests for both kinds of place."""
    if request.param == "file":
        return Place(f"file://{request.getfixturevalue('tmp_path')}/store")
    return Place(f"s3://{request.getfixturevalue('bucket')}/some/prefix")
