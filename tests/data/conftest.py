"""What the tests of listings share: a folder of files that look like scans."""

import pytest


@pytest.fixture
def scans(tmp_path):
    """Make a folder of scans with these names."""

    def make(*names):
        for name in names:
            file = tmp_path / "scans" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"...")
        return tmp_path / "scans"

    return make
