"""Models with auxiliary heads and without: parameters, stages, weights files, image sizes."""

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_model
from flax import nnx
from safetensors.numpy import save_file

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import inception
from imagenet_jax.training.load_weights import read_initial_weights
from imagenet_jax.training.state import count_parameters
from imagenet_jax.weights import state_dicts

HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("aux",)}


def state_dict_of(config):
    _, *trees = models.outline(config)
    arrays = jax.tree.map(lambda x: np.broadcast_to(np.float32(2), x.shape), trees)
    return {k: np.ascontiguousarray(v) for k, v in state_dicts.to_torch(*arrays, config).items()}


def stages(config, side, train):
    graph, *states = models.outline(config)

    def forward(states, images):
        model = nnx.merge(graph, *states)
        return dict(model.activations(images, train=train, rngs=nnx.Rngs(0)))

    return jax.eval_shape(forward, states, jax.ShapeDtypeStruct((2, side, side, 3), "bfloat16"))


@pytest.mark.parametrize(
    ("name", "count"), [("googlenet", 6_624_904), ("inception_v3", 23_834_568)]
)
def test_parameters_without_heads(name, count):
    """torchvision's aux_logits=False."""
    config = models.fields_of_model(name)
    config = {k.removeprefix("model."): f.default for k, f in config.items() if "model." in k}
    assert count_parameters(models.outline({**config, "aux_weight": 0.0})[1]) == count


@pytest.mark.parametrize(
    "name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.full)]
)
def test_heads_are_only_in_training_and_only_if_they_count(name):
    for weight, train, want in ((0.1, True, HEADS[name]), (0.1, False, ()), (0.0, True, ())):
        found = stages(tiny_model(name, aux_weight=weight, dtype="bfloat16"), 299, train)
        assert tuple(stage for stage in found if stage.startswith("aux")) == want
        logits = [found.pop(stage) for stage in (*want, "logits")]
        assert {(x.shape, x.dtype.name) for x in logits} == {((2, 7), "float32")}
        assert {x.dtype.name for x in found.values()} == {"bfloat16"}


SMALLEST = [
    ("googlenet", 0.3, False, 15),
    ("inception_v3", 0.4, False, 75),
    ("inception_v3", 0.0, True, 75),
    ("inception_v3", 0.4, True, 299),
]


@pytest.mark.parametrize(("name", "weight", "train", "least"), SMALLEST)
def test_a_smaller_image_is_refused(name, weight, train, least):
    with pytest.raises(UserError, match=rf"{least - 1}x{least - 1} pixels: .* {least}x{least} "):
        stages(tiny_model(name, aux_weight=weight), least - 1, train)


@pytest.mark.full
@pytest.mark.parametrize(("name", "weight", "train", "least"), SMALLEST)
def test_the_smallest_image(name, weight, train, least):
    """torchvision's min_size; in training its head needs 17x17 at Mixed_6e, and so 299x299."""
    assert stages(tiny_model(name, aux_weight=weight), least, train)["logits"].shape == (2, 7)


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_heads_are_dropped_by_a_model_without_and_needed_by_one_with(name):
    with_heads, without = tiny_model(name), tiny_model(name, aux_weight=0.0)
    full, bare = state_dict_of(with_heads), state_dict_of(without)
    assert bare.keys() < full.keys()
    for given in (full, bare):
        back = state_dicts.to_torch(*state_dicts.from_torch(given, without), without)
        assert back.keys() == bare.keys()
    assert state_dicts.identify(bare)["aux_weight"] == 0
    assert "aux_weight" not in state_dicts.identify(full)
    with pytest.raises(UserError, match=r"holds .* aux_weight 0.* --config\.model\.aux_weight=0"):
        state_dicts.from_torch(bare, with_heads)


@pytest.mark.parametrize("name", HEADS)
def test_a_new_number_of_classes_starts_with_new_heads(name, tmp_path):
    save_file(state_dict_of(tiny_model(name)), tmp_path / "seven.safetensors")
    config = tiny_config("", name)
    config.init.weights = str(tmp_path / "seven.safetensors")
    found = read_initial_weights(config)  # ten classes
    own = models.family(name)
    heads = {path[0] for path in (own.head, *own.auxiliary)}
    assert found.params.keys() == models.outline(config.model)[1].keys() - heads


def test_initial_weights_of_inceptions_head():
    """torchvision: 0.1 for convolutions, 0.001 for the head's linear layer (TF-slim: the same)."""
    make = inception.partial(inception.ConvBlock, kernel_init=inception.INIT, rngs=nnx.Rngs(0))
    head = inception.Auxiliary(64, 10, 0.25, make, nnx.Rngs(1))
    for kernel, deviation in ((head.conv0.conv.kernel, 0.1), (head.fc.kernel, 0.001)):
        assert np.std(kernel[...]) == pytest.approx(deviation, rel=0.1)
