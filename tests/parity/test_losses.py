"""Losses and their gradients against torch's, in float64, over a whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from imagenet_jax.config.fields import defaults  # noqa: E402
from imagenet_jax.training import losses  # noqa: E402

pytestmark = pytest.mark.parity

ROWS, CLASSES = 16, 7
RNG = np.random.default_rng(0)
LOGITS = 4 * RNG.normal(size=(ROWS, CLASSES))
LABELS = RNG.integers(CLASSES, size=ROWS)
MIXED = RNG.dirichlet(np.full(CLASSES, 0.3), size=ROWS)  # as mixup leaves targets
WEIGHTS = tuple(RNG.uniform(0.2, 3.0, CLASSES))


def ours(labels, **changes):
    """(mean loss, its gradient) as the train step takes them."""
    config = defaults().loss
    config.update(changes)
    with jax.enable_x64(True):
        labels = jnp.asarray(labels)

        def mean(logits):
            rows = losses.per_image(logits, labels, config)
            weight = losses.normalized_weights(labels, config, None)
            return jnp.mean(rows if weight is None else rows * weight)

        value, gradient = jax.value_and_grad(mean)(jnp.asarray(LOGITS))
        return float(value), np.asarray(gradient)


def compare(got, criterion, labels):
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = criterion(logits, torch.from_numpy(labels))
    loss.backward()
    # Row weights are float32, as they are in the step.
    assert got[0] == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(got[1], logits.grad.numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax(labels, weights, smoothing):
    criterion = torch.nn.CrossEntropyLoss(
        weight=torch.tensor(weights, dtype=torch.float64) if weights else None,
        label_smoothing=smoothing,
    )
    got = ours(labels, label_smoothing=smoothing, class_weights=weights)
    compare(got, criterion, labels)


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary(labels, weights, reduction, threshold):
    """Targets, threshold and the sum over classes in the order of timm's BinaryCrossEntropy."""
    smoothing = 0.1

    def criterion(logits, labels):
        targets = labels
        if labels.ndim == 1:
            targets = torch.full_like(logits, smoothing / CLASSES)
            targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / CLASSES)
        else:
            targets = (1 - smoothing) * labels + smoothing / CLASSES
        if threshold:
            targets = targets.gt(threshold).double()
        terms = torch.nn.functional.binary_cross_entropy_with_logits(
            logits,
            targets,
            torch.tensor(weights, dtype=torch.float64) if weights else None,
            reduction="none",
        )
        return terms.sum(-1).mean() if reduction == "sum" else terms.mean()

    got = ours(
        labels,
        name="bce",
        label_smoothing=smoothing,
        class_weights=weights,
        bce_reduction=reduction,
        bce_threshold=threshold,
    )
    compare(got, criterion, labels)


def test_l1_is_the_gradient_of_the_penalty():
    """One step of our optimizer against torch's SGD on a loss with the penalty added."""
    from imagenet_jax.training import optim

    config = defaults().optim
    config.update({"l1": 0.03, "weight_decay": 0.1})
    start, gradient = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
    tx = optim.make_optimizer(config, lambda step: 0.2)
    params = jnp.float32(start)
    updates, _ = tx.update(jnp.float32(gradient), tx.init(params), params)

    weights = torch.tensor(start, requires_grad=True)
    sgd = torch.optim.SGD([weights], lr=0.2, momentum=0.9, weight_decay=0.1)
    ((weights * torch.tensor(gradient)).sum() + 0.03 * weights.abs().sum()).backward()
    sgd.step()
    np.testing.assert_allclose(params + updates, weights.detach().numpy(), rtol=1e-5, atol=1e-6)
