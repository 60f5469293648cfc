"""The package's train step against torch's: everything it computes, after one step and after three.

In float64, where the two agree to rounding, so that a tolerance of 1e-9 leaves no room for another
formula. Float32 is compared for SGD alone: Adam divides a gradient by its own size, and a gradient
that is nothing but rounding (of a convolution's bias before batch norm, say, which has no effect)
comes out as a full step in a direction that no two programs share. For the same reason Adam has an
epsilon of 1e-4 here: it magnifies the difference of two small gradients by up to 1 / epsilon, and
with 1e-8 even float64's rounding shows.

The softmax of jax.nn.dot_product_attention is always in float32, about 1e-8 from torch's in
float64. Here it is replaced by the same attention with a softmax in float64; test_vit.py compares
jax.nn's. The depthwise network is MobileNetV2, with the update rule of MobileNetV3, in which torch
and we differ by 4e-9: torch multiplies the gradient of its hard-sigmoid by a float32 of 1/6.

Batch norm's running variance is the unbiased one on both sides (see imagenet_jax/models/norms.py).
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from parity import twins  # noqa: E402

from imagenet_jax.config import fields  # noqa: E402
from imagenet_jax.data.augment import normalize  # noqa: E402
from imagenet_jax.models import convnext, mobilenet, vit  # noqa: E402
from imagenet_jax.training.experiment import make_step_parts  # noqa: E402

pytestmark = pytest.mark.parity

# Of the largest value of the array compared, but at least FLOOR of the largest of all arrays.
# In float32, rounding sometimes moves an activation across the kink of a ReLU, which changes some
# gradients by 1e-2: torch in float32 is then that far from its own float64. For which batches this
# happens depends on the processor, so float32 is compared on several batches, and one must agree. A
# wrong formula would differ on all of them.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
# These networks magnify a difference in their weights some thousand times in the gradients of the
# next step (float64: 1e-14, 1e-13, 1e-12), so that nothing of float32 would be left in the third.
STEPS = {"float32": 1, "float64": 3}
SEED, FLOAT32_SEEDS = 10, range(10, 15)
FLOOR = 1e-2
ROWS = 8

RULES = {
    "sgd": {"name": "sgd", "weight_decay": 1e-2},
    "nesterov": {"name": "sgd", "nesterov": True, "weight_decay": 1e-2},
    "adam": {"name": "adam", "base_lr": 1e-3, "eps": 1e-4, "weight_decay": 1e-2},
    "adamw": {"name": "adamw", "base_lr": 1e-3, "eps": 1e-4, "weight_decay": 0.5},
    # As torchvision's recipes of MobileNetV3 and of ViT, with learning rates for small batches.
    "rmsprop": {
        "name": "rmsprop",
        "rmsprop_form": "torch",
        "base_lr": 1e-3,
        "b2": 0.9,
        "eps": 0.0316,
        "weight_decay": 1e-2,
    },
    "adamw, clipped, cosine": {
        "name": "adamw",
        "base_lr": 1e-3,
        "eps": 1e-4,
        "weight_decay": 0.3,
        "grad_clip_norm": 1.0,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "warmup_start_lr": 1e-4,
    },
}
TOTAL = 4  # steps of a run: the third has 3/4 of the learning rate of the second


@pytest.fixture
def float64(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", twins.float64_attention)
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "rule", "decayed"),
    [
        ("resnet18", "sgd", "all"),
        ("resnet18", "nesterov", "kernels"),
        ("resnet18", "adam", "kernels"),
        ("resnet18", "adamw", "all"),
        ("vgg11_bn", "sgd", "kernels"),
        ("vgg11_bn", "nesterov", "all"),
        ("vgg11_bn", "adam", "all"),
        ("vgg11_bn", "adamw", "kernels"),
    ],
)
def test_steps_in_float64(name, rule, decayed, parity_table):
    compare(name, rule, decayed, "float64", 32, parity_table)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "rule", "decayed"),
    [
        ("mobilenet_v2", "rmsprop", "all"),
        ("vit_ti16", "adamw, clipped, cosine", "kernels"),
        pytest.param("convnext_tiny", "adamw, clipped, cosine", "kernels", marks=pytest.mark.full),
    ],
)
def test_steps_of_few_blocks(name, rule, decayed, parity_table, monkeypatch):
    # A shortcut in the first block, expansion and stride in the second.
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 32, 1, 1), (6, 24, 1, 2)))
    monkeypatch.setitem(vit.VARIANTS, "vit_ti16", vit.Variant(16, 1, 3))
    monkeypatch.setitem(convnext.VARIANTS, "convnext_tiny", ((1, 1, 1, 1), 96))
    compare(name, rule, decayed, "float64", 32, parity_table)


@pytest.mark.parametrize("name", list(twins.WIDTH))
def test_steps_in_float32(name, parity_table):
    differences = []
    for seed in FLOAT32_SEEDS:
        try:
            return compare(name, "sgd", "all", "float32", 64, parity_table, seed)
        except AssertionError as difference:
            differences.append(str(difference).splitlines()[0])
    pytest.fail("; ".join(differences))


def test_normalisation_with_the_constants_of_imagenet():
    """A few roundings of float32 apart: torchvision divides twice, we multiply once."""
    from torchvision.transforms.v2 import functional

    images = twins.batch_of(2, 32, seed=0)["image"]
    chw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    want = functional.normalize(
        functional.to_dtype(chw, torch.float32, scale=True),
        fields.IMAGENET_MEAN,
        fields.IMAGENET_STD,
    )
    got = normalize(images, fields.IMAGENET_MEAN, fields.IMAGENET_STD)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6)


def compare(name, rule, decayed, dtype, side, parity_table, seed=SEED):
    config = twins.config_of(name, side)
    config.loss.label_smoothing = 0.1
    config.optim.update({"schedule": "constant", "lr_scaling": "none"} | RULES[rule])
    config.optim.decay_bias_and_norm = decayed == "all"
    config.batch_size, config.epochs = ROWS, float(TOTAL)
    parts = make_step_parts(config, steps_per_epoch=1)
    tx = optax.chain(twins.kept_gradients(), parts.tx)

    model = twins.torch_model(name, side)
    state = twins.state_of(model, config, tx, dtype)
    model = model.to(getattr(torch, dtype))
    theirs = twins.torch_optimizer(config.optim, model)
    scheduler = twins.torch_scheduler(config.optim, theirs, TOTAL)
    step = twins.compiled_step(dataclasses.replace(parts, tx=tx))
    start = snapshot(model)

    for t in range(STEPS[dtype]):
        batch = twins.batch_of(ROWS, side, seed=seed + t)
        state, metrics = step(state, batch)
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(twins.torch_pixels(batch["image"], dtype)),
            torch.from_numpy(batch["label"]).long(),
            label_smoothing=0.1,
        )
        loss.backward()
        gradients = {k: p.grad.numpy().copy() for k, p in model.named_parameters()}
        if limit := config.optim.grad_clip_norm:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            assert norm > limit
            # torch adds 1e-6 to the norm, unlike optax.
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm - 1e-6)
        theirs.step()
        scheduler.step()

        # The second and third steps start from parameters and moments that already differ.
        tolerance = TOLERANCE[dtype] * 10 ** min(t, 1)
        row = f"{rule}, {dtype}, step {t + 1}"
        error = abs(float(metrics["loss"]) / loss.item() - 1)
        assert metrics["loss"].dtype == dtype
        assert error < tolerance, f"{row}: loss is off by {error:.1e}"
        parity_table("training", f"loss, {row}", name, error)

        ours = twins.as_torch(state.opt_state[0], {}, config)
        worst = compared(f"gradients, {row}", ours, twins.renamed(gradients), tolerance)
        parity_table("training", f"gradients, {row}", name, worst)

        # What the steps changed: the weights themselves would hide it behind their size.
        after, ours = snapshot(model), twins.as_torch(state.params, state.batch_stats, config)
        for what, keys in (
            ("statistics", [k for k in after if "running" in k]),
            ("updates", [k for k in after if "running" not in k]),
        ):
            moved = {k: after[k] - start[k] for k in keys}
            ours_moved = {k: np.asarray(ours[k], dtype) - start[k] for k in keys}
            if keys:
                worst = compared(f"{what}, {row}", ours_moved, moved, tolerance)
                parity_table("training", f"{what}, {row}", name, worst)


def snapshot(model) -> dict[str, np.ndarray]:
    arrays = {
        k: v.numpy().copy()
        for k, v in model.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    return twins.renamed(arrays)


def compared(what, ours, theirs, tolerance):
    """The largest error, which must be below `tolerance`."""
    assert set(ours) == set(theirs)
    floor = FLOOR * max(np.abs(v).max() for v in theirs.values())
    worst = 0.0
    for key, value in theirs.items():
        assert ours[key].shape == value.shape
        error = float(np.abs(ours[key] - value).max() / max(np.abs(value).max(), floor))
        assert error < tolerance, f"{what}: {key} is off by {error:.1e}"
        worst = max(worst, error)
    return worst
