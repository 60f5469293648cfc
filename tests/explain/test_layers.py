"""Names of convolutions, and what a layer puts out."""

import jax
import numpy as np
import pytest
import scipy.signal
from conftest import tiny_model
from flax import nnx

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.explain import methods
from imagenet_jax.weights import state_dicts


def abstract(name, **fields):
    config = tiny_model(name, **fields)
    return config, nnx.merge(*models.outline(config))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((family.variants[0], {"width": 0.5}) for family in models.families()),
        ("resnet18", {"stem": "small"}),
        ("resnet50", {"blur_pool": "ffcv"}),
        ("vgg11", {}),
        ("vgg13_bn", {}),
    ],
)
def test_convolutions_are_the_four_dimensional_weights_of_the_state_dict(name, fields):
    config, model = abstract(name, **fields)
    arrays = [
        jax.tree.map(lambda x: np.zeros(x.shape), nnx.to_pure_dict(nnx.state(model, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    ]
    state_dict = state_dicts.to_torch(*arrays, config)
    kernels = {key.removesuffix(".weight") for key, x in state_dict.items() if x.ndim == 4}
    names = methods.conv_layers(model)
    own = models.family(name)
    heads = tuple(own.torch_name(name, path) for path in (own.head, *own.auxiliary))
    assert set(names) == {kernel for kernel in kernels if not kernel.startswith(heads)}
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet18", ("conv1", "layer4.1.conv2")),
        ("vgg16", ("features.0", "features.28")),
        ("vgg16_bn", ("features.0", "features.40")),
        ("bit_r50x1", ("stem.conv", "stages.3.blocks.2.conv3")),
    ],
)
def test_layers_go_from_input_to_output(name, ends):
    names = methods.conv_layers(abstract(name, **({"width": 0.5} if "bit" in name else {}))[1])
    assert (names[0], names[-1]) == ends


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer4.1.conv9", ("no layer", "did you mean layer4.1.conv")),
        ("layer4.1.bn2", ("a layer of this model, but no convolution",)),
        ("fc", ("a layer of this model, but no convolution", "layer4.1.conv2", "--layer=?")),
        ("", ("no layer", "--layer=?")),
    ],
)
def test_what_is_no_convolution_is_refused(name, words):
    with pytest.raises(UserError) as caught:
        methods.check_layer(abstract("resnet18")[1], name)
    for word in words:
        assert word in str(caught.value)


def test_activations_are_those_of_the_convolution_alone(small_vgg):
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    conv = small_vgg.features[0][0].conv
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(conv.kernel[...])
    expected = np.zeros((2, 32, 32, kernel.shape[-1]))
    for b in range(2):
        for o in range(kernel.shape[-1]):
            for i in range(3):
                expected[b, ..., o] += scipy.signal.correlate2d(
                    padded[b, ..., i], kernel[..., i, o], mode="valid"
                )
    expected += np.asarray(conv.bias[...])
    found = methods.activations(small_vgg, images, "features.0")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_with_a_tap_leaves_the_model_alone(small_vgg):
    def doubled(x):
        return 2 * x

    other = methods.add_tap(small_vgg, "features.3", doubled)
    assert isinstance(other.features[1][0].conv, methods.Tap)
    assert isinstance(small_vgg.features[1][0].conv, nnx.Conv)


def test_first_filters_are_standardised_where_the_model_does_so():
    _, model = abstract("bit_r50x1", width=0.5)
    raw = np.random.default_rng(0).normal(2, 3, (7, 7, 3, 32)).astype(np.float32)
    model.stem["conv"].kernel = nnx.Param(raw)
    expected = (raw - raw.mean((0, 1, 2))) / raw.std((0, 1, 2))
    np.testing.assert_allclose(methods.first_kernel(model), expected, rtol=1e-4, atol=1e-5)
