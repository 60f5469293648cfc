"""Miniature archives for the tests of preparation."""

import pytest
from miniatures import content, write_tars


@pytest.fixture
def tars(tmp_path):
    write_tars(tmp_path / "tars", *content())
    return tmp_path / "tars"
