"""docs/models.md: every model is on it, as the script writes it."""

import re

import pytest

from docs import make_models
from imagenet_jax import models
from imagenet_jax.files import read_json
from imagenet_jax.weights import catalog


def test_every_model_is_on_the_page():
    names = re.findall(r"^\| `(\w+)` \|", make_models.PAGE.read_text(), re.MULTILINE)
    assert names == models.names()


def test_weights_of_the_same_tag_have_the_name_of_their_model():
    names = (
        "torchvision/vit_b_16.v1",
        "timm/vit_base_patch16_224.augreg_in1k",
        "timm/deit_base_patch16_224.fb_in1k",
        "timm/deit3_base_patch16_224.fb_in1k",
        "google/vit-base-patch16-224",
    )
    assert make_models.list_weights([catalog.entries()[name] for name in names]) == (
        "torchvision: v1 81.07; timm: augreg_in1k 79.15, deit_base_patch16_224.fb_in1k 81.98, "
        "deit3_base_patch16_224.fb_in1k 83.80; google: vit-base-patch16-224"
    )


@pytest.mark.full
def test_every_family_is_compiled():
    compiled = read_json(make_models.COMPILED)
    families = {models.family(row["model"]).model for row in compiled.values() if "h100:1" in row}
    assert families == {family.model for family in models.families()}


@pytest.mark.full
def test_the_page_is_what_the_script_writes():
    """If a model, a recipe or the catalog changes it: python -m docs.make_models."""
    assert make_models.PAGE.read_text() == make_models.make()
