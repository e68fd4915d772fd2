"""Tests of one method, or of one file, run in one worker, where they share compiled programs."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups for `pytest --dist loadgroup`."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        group = parameters.get("name", item.path.stem if item.path.parent.name == "methods" else None)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(str(group)))
