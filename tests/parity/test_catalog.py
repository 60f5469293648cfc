"""The catalog of published weights against the tables of torchvision and timm."""

import re

import pytest

pytest.importorskip("torch")
library = pytest.importorskip("torchvision").models
pytest.importorskip("timm")

from docs import make_catalog  # noqa: E402
from imagenet_jax import config as config_io  # noqa: E402
from imagenet_jax import models  # noqa: E402
from imagenet_jax.config.fields import defaults  # noqa: E402
from imagenet_jax.errors import UserError  # noqa: E402
from imagenet_jax.files import read_json  # noqa: E402
from imagenet_jax.models.operations import count_multiply_adds  # noqa: E402
from imagenet_jax.weights import library_names, state_dicts  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.full
def test_the_catalog_is_what_the_script_writes():
    """If a new family changes it: python -m docs.make_catalog."""
    assert read_json(make_catalog.FILE) == make_catalog.make()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("torchvision/mobilenet_v2", ""),
        ("timm/resnet18", ""),
        ("timm/resnetv2_50x1_bit", ""),
        ("timm/resnet34", ""),
        ("timm/swin_tiny_patch4_window7_224", ""),
        ("timm/mobilenetv2_100", ""),
        ("timm/mobilenetv3_large_100", "timm_mobilenet_v3_large"),
        ("timm/efficientnet_b0", "efficientnet_b0"),
        ("timm/tf_efficientnet_b0", "tf_efficientnet_b0"),
        ("timm/efficientnet_lite0", "timm_efficientnet_lite0"),
    ],
)
def test_the_arrays_of_an_entry_fit_its_model(name, model):
    given = make_catalog.empty_state_dict(name)
    names, _ = library_names.rename(given, origin=name)
    arrays = {new: given[old] for old, new in names.items()}
    if model:  # with other padding the arrays would fit too
        with pytest.raises(UserError, match=f"fits .*{model}.* --model=NAME"):
            state_dicts.identify(arrays)
    found = state_dicts.identify(arrays, model)
    assert model in ("", found["name"])
    config = defaults(found["name"]).model
    config.update(found)
    state_dicts.from_torch(arrays, config)


@pytest.mark.parametrize(
    "name",
    [
        "timm/tf_efficientnetv2_s",  # TensorFlow's padding
        "timm/efficientnetv2_rw_s",
        "timm/swinv2_tiny_window8_256",
        "timm/swin_large_patch4_window7_224",
        "torchvision/swin_v2_t",
    ],
)
def test_models_that_we_do_not_have_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is not a state dict"):
        make_catalog._identify(name)


@pytest.mark.full
def test_operations_of_models_are_those_that_torchvision_publishes():
    for name in filter(library.list_models(module=library).__contains__, models.names()):
        published = next(iter(library.get_model_weights(name)))
        side = published.transforms().crop_size[0]
        config = defaults(name).model
        if "image_size" in config:  # positions of another size would be interpolated
            config.image_size = side
        counted = count_multiply_adds(config, side) / 1e9
        assert counted == pytest.approx(published.meta["_ops"], abs=1e-3), name


def test_accuracies_of_recipes_are_those_that_torchvision_publishes():
    root = make_catalog.FILE.parents[2]
    pattern = r"^\| `(configs/\S+)` \|[^|]*\| torchvision(.*?)\| ([\d.]+) % \| ([\d.]+) % \|"
    rows = re.findall(pattern, (root / "docs" / "recipes.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    for spec, recipe, *accuracies in rows:
        name = config_io.load(str(root / spec)).model.name.replace("vit_b16", "vit_b_16")
        weights = library.get_model_weights(name)
        version = "IMAGENET1K_V2" if "V2" in recipe else "IMAGENET1K_V1"
        if name == "resnext101_64x4d":  # its first weights are of the second recipe
            version = "IMAGENET1K_V1"
        published = weights[version].meta["_metrics"]["ImageNet-1K"]
        for text, metric in zip(accuracies, ("acc@1", "acc@5"), strict=True):
            digits = len(text.partition(".")[2])
            assert round(published[metric], digits) == pytest.approx(float(text), abs=0.0051), spec
