"""Grad-CAM, guided backpropagation and occlusion against torchvision's models with torch's hooks.

The reference is written here from the papers' formulas, in float64; ours runs in float32.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config import fields
from imagenet_jax.explain import methods
from imagenet_jax.weights import state_dicts

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.parity

SIDE = 64
LABELS = np.array([3, 8])
TOLERANCE = 1e-4  # of the largest magnitude
LAYERS = {
    "resnet18": ("conv1", "layer2.0.downsample.0", "layer3.1.conv2", "layer4.1.conv2"),
    "vgg11": ("features.0", "features.8", "features.18"),
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(2, SIDE // 8, SIDE // 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2) + 0.3 * rng.normal(size=(2, SIDE, SIDE, 3))


@pytest.fixture(scope="module", params=list(LAYERS))
def pair(request):
    """(name, torchvision's model in float64, ours with the same weights)."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, request.param)(num_classes=10)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # it would overwrite what a hook of a convolution keeps
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, (2 / module.in_features) ** 0.5)
    model = fields.defaults(request.param).model
    model.num_classes = 10
    arrays = {key: value.numpy() for key, value in theirs.state_dict().items()}
    params, stats = state_dicts.from_torch(arrays, model)
    abstract = nnx.eval_shape(lambda: models.build(model, rngs=nnx.Rngs(0)))
    graph = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]
    return request.param, theirs.double().eval(), nnx.merge(graph, params, stats)


def as_torch(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def as_ours(images):
    return jax.numpy.asarray(images, "float32")


def close(found, expected, table, row, column):
    scale = np.abs(expected).max()
    assert scale > 0
    error = np.abs(np.asarray(found, np.float64) - expected).max() / scale
    table("explanations", row, column, error)
    assert error < TOLERANCE, (row, column, error)


def test_layers_are_the_convolutions_of_torchvision(pair):
    _, theirs, ours = pair
    expected = [n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert list(methods.conv_layers(ours)) == expected


def test_grad_cam_is_that_of_hooks(pair, images, parity_table):
    name, theirs, ours = pair
    for layer in LAYERS[name]:
        kept = {}
        handle = theirs.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.update(output=output)
        )
        logits = theirs(as_torch(images))
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[range(2), LABELS].sum(), kept["output"])
        weights = gradient.mean((2, 3), keepdim=True)
        maps = torch.relu((weights * kept["output"]).sum(1, keepdim=True))
        maps = torch.nn.functional.interpolate(maps, (SIDE, SIDE), mode="bilinear")[:, 0]
        maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)
        found = methods.grad_cam(ours, as_ours(images), LABELS, layer)
        close(found, maps.detach().numpy(), parity_table, name, "Grad-CAM")


def test_guided_backpropagation_is_that_of_hooks(pair, images, parity_table):
    name, theirs, ours = pair

    def rectify(module, gradients, signal):
        return (gradients[0].clamp(min=0),)

    handles = []
    for module in theirs.modules():
        if isinstance(module, torch.nn.ReLU):
            handles.append(module.register_full_backward_hook(rectify))
    pixels = as_torch(images).requires_grad_()
    theirs(pixels)[range(2), LABELS].sum().backward()
    for handle in handles:
        handle.remove()
    expected = pixels.grad.numpy().transpose(0, 2, 3, 1)
    found = methods.guided_backpropagation(ours, as_ours(images), LABELS)
    close(found, expected, parity_table, name, "guided backpropagation")
    plain = torch.autograd.grad(theirs(pixels)[range(2), LABELS].sum(), pixels)[0]
    assert not np.allclose(plain.numpy().transpose(0, 2, 3, 1), expected, rtol=0.1)


def test_occlusion_is_that_of_hiding_squares(pair, images, parity_table):
    name, theirs, ours = pair
    expected = np.zeros((2, 3, 3))
    with torch.no_grad():
        for i, top in enumerate((0, 20, 40)):
            for j, left in enumerate((0, 20, 40)):
                hidden = images.copy()
                hidden[:, top : top + 24, left : left + 24] = 0
                shares = torch.softmax(theirs(as_torch(hidden)), -1)
                expected[:, i, j] = shares[range(2), LABELS].numpy()
    found = methods.occluded_probabilities(ours, as_ours(images), LABELS, square=24, stride=20)
    close(found, expected, parity_table, name, "occlusion")
