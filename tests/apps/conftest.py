"""What the tests of commands share."""

import pytest


class WrittenParts(list):
    """The positions of the cases of the parts that ``embed`` has written; after ``stop_after`` parts comes Ctrl-C."""

    stop_after = None


@pytest.fixture
def written(monkeypatch):
    """The parts that ``embed`` writes, and a way to interrupt it."""
    from monai_diffae.data.atomic import PartStore

    parts, original = WrittenParts(), PartStore.append

    def append(self, rows):
        original(self, rows)
        parts.append(sorted(set(rows["position"].tolist())))
        if len(parts) == parts.stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartStore, "append", append)
    return parts
