"""The catalog of published weights against the tables of torchvision and timm."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

from docs import make_catalog  # noqa: E402
from imagenet_jax.config.fields import defaults  # noqa: E402
from imagenet_jax.files import read_json  # noqa: E402
from imagenet_jax.weights import torch_names  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.full
def test_the_catalog_is_what_the_script_writes():
    """If a new family changes it: python -m docs.make_catalog."""
    assert read_json(make_catalog.FILE) == make_catalog.make()


@pytest.mark.parametrize(
    "name", ["torchvision/mobilenet_v2", "timm/resnet18", "timm/resnetv2_50x1_bit", "timm/resnet34"]
)
def test_the_arrays_of_an_entry_fit_its_model(name):
    given = make_catalog.empty_state_dict(name)
    names, _ = torch_names.rename(given, origin=name)
    arrays = {new: given[old] for old, new in names.items()}
    found = torch_names.identify(arrays)
    config = defaults(found["name"]).model
    config.update(found)
    torch_names.from_torch(arrays, config)
