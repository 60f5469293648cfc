"""Miniature archives for the tests of preparation."""

import pytest


@pytest.fixture
def tars(tmp_path):
    from miniatures import content, write_tars  # which import the conftest that imports this

    write_tars(tmp_path / "tars", *content())
    return tmp_path / "tars"
