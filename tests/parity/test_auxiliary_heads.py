"""Training with auxiliary heads against torch's: the loss and gradients of a step in float64."""

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from parity import twins  # noqa: E402

from imagenet_jax.config import fields  # noqa: E402
from imagenet_jax.runtime import xla  # noqa: E402
from imagenet_jax.training.experiment import make_step_parts  # noqa: E402
from imagenet_jax.training.step import gradient  # noqa: E402

pytestmark = pytest.mark.parity

SIDE = {"googlenet": 64, "inception_v3": 299}
OPTIONS = {"googlenet": {"dropout_aux": 0.0}, "inception_v3": {}}
WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}  # GoogLeNet's paper, section 5; TF-slim
TOLERANCE = 1e-9  # of the largest value of the array, but at least FLOOR of the largest of all
FLOOR = 1e-2
ROWS = 4


@pytest.mark.parametrize(
    "name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.full)]
)
def test_loss_and_gradients_of_a_step(name, parity_table):
    config = fields.defaults(name)
    config.model.num_classes = twins.CLASSES
    for field in {"dropout", "aux_dropout"} & set(config.model):
        config.model[field] = 0.0
    config.augment.update(image_size=SIDE[name], flip=False)
    config.data.update(mean=(128 / 255,) * 3, std=(64 / 255,) * 3)  # see twins.config_of
    config.loss.label_smoothing = 0.1
    config.batch_size = ROWS

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(
        num_classes=twins.CLASSES, dropout=0.0, init_weights=False, **OPTIONS[name]
    )
    batch = twins.batch_of(ROWS, 4 * -(-SIDE[name] // 4), seed=0)
    batch["image"] = batch["image"][:, : SIDE[name], : SIDE[name]]
    with jax.enable_x64(True):
        state = twins.state_of(theirs, config, optax.identity(), "float64")
        parts = make_step_parts(config, steps_per_epoch=1)
        compute = jax.jit(
            lambda state, batch: gradient(state, batch, parts),
            compiler_options=xla.options(optimize=False),
        )
        got = compute(state, batch)

    theirs = theirs.double().train()
    labels = torch.from_numpy(batch["label"]).long()
    main, *auxiliary = (
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        for logits in theirs(twins.torch_pixels(batch["image"], "float64"))
    )
    assert len(auxiliary) == (2 if name == "googlenet" else 1)
    loss = main + WEIGHT[name] * sum(auxiliary)
    loss.backward()
    error = abs(float(got.means["loss"]) / loss.item() - 1)
    assert error < TOLERANCE
    parity_table("training", "loss with auxiliary heads", name, error)

    ours = twins.as_torch(got.grads, {}, config)
    want = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    assert set(ours) == set(want)
    floor = FLOOR * max(np.abs(value).max() for value in want.values())
    errors = {
        key: float(np.abs(ours[key] - value).max() / max(np.abs(value).max(), floor))
        for key, value in want.items()
    }
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.get)
    parity_table("training", "gradients with auxiliary heads", name, max(errors.values()))
