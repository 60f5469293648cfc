"""ConvNeXt and Swin at sizes that their strides and windows do not divide; names of other files."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config import fields
from imagenet_jax.weights import library_names, state_dicts

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # of the largest logit


def with_large_weights(model):
    """The model with no weight so small that it hides an error."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "layer_scale" not in name:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.uniform_(0.1, 0.5)
    return model.eval()


def to_numpy(state_dict):
    return {key: value.numpy() for key, value in state_dict.items()}


def forward(state_dict):
    """Return (a function of NHWC images, config) of the model that the state dict holds."""
    found = state_dicts.identify(state_dict)
    config = fields.defaults(found["name"]).model
    config.update(found)
    trees = state_dicts.from_torch(state_dict, config)
    graph, *states = nnx.split(
        nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )
    for state, tree in zip(states, trees, strict=True):
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
    evaluate = jax.jit(lambda states, images: nnx.merge(graph, *states)(images, train=False))
    return lambda images: np.asarray(evaluate(states, images)), (trees, config)


def agree(model, ours, size):
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    error = np.abs(ours(images) - want).max() / np.abs(want).max()
    assert error < TOLERANCE, f"{size}: off by {error:.1e}"


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_other_image_sizes(name):
    model = with_large_weights(getattr(torchvision.models, name)(num_classes=10))
    ours, _ = forward(to_numpy(model.state_dict()))
    for size in ((96, 96), (113, 113), (33, 250)):
        agree(model, ours, size)


def test_swin_writes_torchvisions_buffers():
    model = torchvision.models.swin_t(num_classes=10)
    want = to_numpy(model.state_dict())
    _, (trees, config) = forward(want)
    written = state_dicts.to_torch(*trees, config)
    assert written.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_array_equal(written[key], array)
        assert written[key].dtype == array.dtype


def names_of_the_authors(name):
    """The names of github.com/facebookresearch/ConvNeXt, of timm's."""
    name = re.sub(r"^stem", "downsample_layers.0", name)
    name = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", name)
    name = name.replace(".blocks", "").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
    return name.replace("head.norm", "norm").replace("head.fc", "head")


def names_of_transformers(name):
    """The names of ConvNextForImageClassification, of timm's."""
    for old, new in (
        ("stem.0", "convnext.embeddings.patch_embeddings"),
        ("stem.1", "convnext.embeddings.layernorm"),
        ("stages", "convnext.encoder.stages"), ("blocks", "layers"), ("conv_dw", "dwconv"),
        ("downsample", "downsampling_layer"), ("head.norm", "convnext.layernorm"),
        ("norm", "layernorm"), ("layerlayernorm", "layernorm"), ("mlp.fc", "pwconv"),
        ("gamma", "layer_scale_parameter"), ("head.fc", "classifier"),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def test_convnext_of_other_libraries():
    dims = (12, 24, 48, 96)
    model = with_large_weights(timm.create_model("convnext_tiny", dims=dims, num_classes=10))
    state_dict = to_numpy(model.state_dict())
    given = {
        "timm": {name: name for name in state_dict},
        "authors": {name: names_of_the_authors(name) for name in state_dict},
        "transformers": {name: names_of_transformers(name) for name in state_dict},
        "wrapped": {name: f"module.model.{names_of_the_authors(name)}" for name in state_dict},
    }
    # timm reads the authors' files, and says so itself.
    of_authors = {given["authors"][name]: value for name, value in model.state_dict().items()}
    read = timm.models.convnext.checkpoint_filter_fn(of_authors, model)
    assert read.keys() == state_dict.keys()
    for library, names in given.items():
        renamed, _ = library_names.rename(names.values(), origin=library)
        arrays = {renamed[names[name]]: array for name, array in state_dict.items()}
        ours, (_, config) = forward(arrays)
        assert (config.name, config.width) == ("convnext_tiny", 1 / 8), library
        agree(model, ours, (64, 64))


def names_of_the_authors_of_swin(name):
    """The names of github.com/microsoft/Swin-Transformer, of timm's."""
    name = re.sub(
        r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
    )
    return name.replace("head.fc", "head")


@pytest.mark.parametrize(
    ("timms", "ours_name"),
    [
        ("swin_tiny_patch4_window7_224", "swin_t"),
        pytest.param("swin_small_patch4_window7_224", "swin_s", marks=pytest.mark.full),
        pytest.param("swin_base_patch4_window7_224", "swin_b", marks=pytest.mark.full),
    ],
)
def test_swin_of_other_libraries(timms, ours_name):
    model = with_large_weights(timm.create_model(timms, num_classes=10))
    state_dict = to_numpy(model.state_dict())
    given = {
        "timm": {name: name for name in state_dict},
        "authors": {name: names_of_the_authors_of_swin(name) for name in state_dict},
        "wrapped": {name: f"module.model.{name}" for name in state_dict},
    }
    # timm reads the authors' files.
    of_authors = {given["authors"][name]: value for name, value in model.state_dict().items()}
    buffers = ("layers.0.blocks.1.attn_mask", "layers.0.blocks.1.attn.relative_position_index")
    of_authors |= dict.fromkeys(buffers, torch.zeros(1))
    read = timm.models.swin_transformer.checkpoint_filter_fn(of_authors, model)
    assert read.keys() == state_dict.keys()
    for library, names in given.items():
        extra = buffers if library == "authors" else ()
        renamed, _ = library_names.rename([*names.values(), *extra], origin=library)
        arrays = {renamed[names[name]]: array for name, array in state_dict.items()}
        arrays |= {renamed[name]: np.zeros(1) for name in extra if name in renamed}
        ours, (_, config) = forward(arrays)
        assert (config.name, config.width) == (ours_name, 1), library
        agree(model, ours, (224, 224))
