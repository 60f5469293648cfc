"""docs/models.md: every model is on it, as the script writes it."""

import re

import pytest

from docs import make_models
from imagenet_jax import models
from imagenet_jax.files import read_json


def test_every_model_is_on_the_page():
    names = re.findall(r"^\| `(\w+)` \|", make_models.PAGE.read_text(), re.MULTILINE)
    assert names == models.names()


@pytest.mark.full
def test_every_family_is_compiled():
    compiled = read_json(make_models.COMPILED)
    families = {models.family(row["model"]).model for row in compiled.values() if "h100:1" in row}
    assert families == {family.model for family in models.families()}


@pytest.mark.full
def test_the_page_is_what_the_script_writes():
    """If a model, a recipe or the catalog changes it: python -m docs.make_models."""
    assert make_models.PAGE.read_text() == make_models.make()
