"""What the tests of commands share."""

import pytest


class WrittenShards(list):
    """The shards that ``embed`` has written, in order; after ``stop_after`` of them Ctrl-C is simulated."""

    stop_after = None


@pytest.fixture
def written(monkeypatch):
    """The shards that ``embed`` writes, and a way to interrupt it."""
    from monai_diffae.apps.embedding.shards import Shards

    shards, original = WrittenShards(), Shards.write

    def write(self, shard, *content):
        original(self, shard, *content)
        shards.append(shard)
        if len(shards) == shards.stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Shards, "write", write)
    return shards
