"""Augmentations against torchvision's on uint8 tensors: operation by operation, and the draws.

Exact means bit for bit. Elsewhere the last bit of a float32 sum may put a value on the other side
of a whole number: one level, in fewer than `RARE` of the values. A resampled pixel may also lie
half-way between two, where rounding decides: those are left out of the comparison with "nearest".
With "bilinear" a mean of two values may lie half-way between levels: one level there, more often.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagenet_jax.data.augment import autoaugment, erasing, mixing, operations
from imagenet_jax.data.augment import randaugment as policies
from imagenet_jax.training.losses import cross_entropy

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
datasets = pytest.importorskip("sklearn.datasets")

from torchvision.transforms import v2  # noqa: E402  (after the skips)
from torchvision.transforms.v2 import functional as F  # noqa: E402

pytestmark = pytest.mark.parity

HEIGHT, WIDTH = 47, 62
RARE = 0.05
HALF_WAY = 0.1


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two photographs, noise, one level, gray noise, two levels: u8[6, 47, 62, 3]."""
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, 3)
    photographs = [
        np.asarray(Image.fromarray(photo).resize((WIDTH, HEIGHT)))
        for photo in datasets.load_sample_images().images
    ]
    return np.stack(
        [
            *photographs,
            rng.integers(0, 256, shape),
            np.full(shape, 77),
            np.broadcast_to(rng.integers(0, 256, (HEIGHT, WIDTH, 1)), shape),
            255 * rng.integers(0, 2, shape),
        ]
    ).astype(np.uint8)


def to_torch(images: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def compare(
    ours,
    theirs,
    *,
    exact: bool = False,
    rare: float = RARE,
    where: np.ndarray | None = None,
) -> None:
    ours = np.asarray(ours).astype(int)
    theirs = theirs.permute(0, 2, 3, 1).numpy().astype(int)
    difference = np.abs(ours - theirs)
    if where is not None:
        difference = difference * where[..., None]
    assert difference.max() <= (0 if exact else 1)
    assert (difference > 0).mean() < rare


def amounts(images: np.ndarray, value: float) -> jax.Array:
    return jnp.full(len(images), value)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (operations.brightness, F.adjust_brightness),
        (operations.contrast, F.adjust_contrast),
        (operations.saturation, F.adjust_saturation),
        (operations.sharpness, F.adjust_sharpness),
    ],
    ids=["brightness", "contrast", "saturation", "sharpness"],
)
@pytest.mark.parametrize("factor", [0.0, 0.3, 0.73, 1.0, 1.27, 1.9])
def test_blends(images, ours, theirs, factor):
    result = jax.jit(ours)(images, amounts(images, factor - 1))
    compare(result, theirs(to_torch(images), factor), exact=factor in (0.0, 1.0))


@pytest.mark.parametrize("turn", [-0.5, -0.21, 0.0, 0.1, 0.5])
def test_hue(images, turn):
    ours = operations.hue(jnp.asarray(images), amounts(images, turn))
    compare(ours, F.adjust_hue(to_torch(images), turn), rare=0.001)


def test_posterize_solarize_invert_autocontrast_equalize_are_exact(images):
    x, t = jnp.asarray(images), to_torch(images)
    for bits in range(9):
        compare(operations.posterize(x, amounts(images, bits)), F.posterize(t, bits), exact=True)
    for threshold in (0.0, 77.0, 127.5, 255.0):
        ours = operations.solarize(x, amounts(images, threshold))
        compare(ours, F.solarize(t, threshold), exact=True)
    compare(operations.invert(x), F.invert(t), exact=True)
    compare(operations.lookup(x, operations.autocontrast_table(x)), F.autocontrast(t), exact=True)
    compare(operations.lookup(x, operations.equalize_table(x)), F.equalize(t), exact=True)


@pytest.mark.parametrize("fill", [None, (10.0, 200.0, 30.0)], ids=["black", "filled"])
@pytest.mark.parametrize("angle", [-170.0, -90.0, 12.3, 45.0, 180.0])
def test_rotation(images, angle, fill):
    x, t, matrix = jnp.asarray(images), to_torch(images), operations.rotate(amounts(images, angle))
    theirs = F.rotate(t, angle, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
    compare(operations.affine(x, matrix, "bilinear", fill), theirs, rare=HALF_WAY)
    where = decided(np.asarray(matrix[0], np.float64))
    theirs = F.rotate(t, angle, interpolation=v2.InterpolationMode.NEAREST, fill=fill)
    compare(operations.affine(x, matrix, "nearest", fill), theirs, where=where)


def decided(matrix: np.ndarray) -> np.ndarray:
    """Whether the source of each pixel is clearly nearer to one pixel than to another."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] - np.array([HEIGHT - 1, WIDTH - 1])[:, None, None] / 2
    source = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))
    source += np.array([WIDTH - 1, HEIGHT - 1])[:, None, None] / 2
    return (np.abs(source - np.floor(source) - 0.5) > 1e-3).all(axis=0)


POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
APPLY = jax.jit(policies.apply, static_argnames="interpolation")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_table_of_magnitudes_is_torchvisions(policy):
    for side in ((224, 224), (32, 32), (HEIGHT, WIDTH)):
        ours = policies.magnitudes(policy, *side)
        space = POLICIES[policy]._AUGMENTATION_SPACE
        assert len(space) == len(policies.OPERATIONS)
        for name, row, (magnitudes, signed) in zip(
            policies.OPERATIONS, ours, space.values(), strict=True
        ):
            theirs = magnitudes(policies.BINS, *side)
            theirs = np.zeros(policies.BINS) if theirs is None else theirs.numpy()
            if name.startswith("translate"):  # which torchvision cuts off when it applies them
                theirs = np.trunc(theirs)
            np.testing.assert_allclose(row, theirs, rtol=1e-6, atol=1e-7, err_msg=name)
            np.testing.assert_array_equal(row.astype(int), theirs.astype(int), err_msg=name)
            if theirs.any() and name not in ("posterize", "solarize"):
                assert signed == (policies.OPERATIONS.index(name) < policies.SIGNED)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("operation", policies.OPERATIONS)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_operation_of_a_policy(images, policy, operation, interpolation):
    index = policies.OPERATIONS.index(operation)
    transform = POLICIES[policy](interpolation=v2.InterpolationMode(interpolation))
    name, (magnitudes, signed) = list(transform._AUGMENTATION_SPACE.items())[index]
    assert name.lower() == operation.replace("_", "")
    table = policies.magnitudes(policy, HEIGHT, WIDTH)
    for bin in (0, 9, 20, 30):
        theirs = magnitudes(policies.BINS, HEIGHT, WIDTH)
        magnitude = 0.0 if theirs is None else float(theirs[bin])
        for sign in (1, -1) if signed else (1,):
            value = sign * table[index, bin]
            ours = APPLY(
                images, amounts(images, index), amounts(images, value), interpolation=interpolation
            )
            want = transform._apply_image_or_video_transform(
                to_torch(images), name, sign * magnitude, transform.interpolation, transform._fill
            )
            where = None
            if interpolation == "nearest" and operation in ("shear_x", "shear_y", "rotate"):
                where = decided(matrix_of(operation, value))
            moved = operation in ("shear_x", "shear_y", "rotate")
            compare(
                ours,
                want,
                where=where,
                rare=HALF_WAY if moved and interpolation == "bilinear" else RARE,
                exact=operation not in ("color", "contrast", "sharpness") and not moved,
            )


def test_autoaugment_is_torchvisions_with_the_same_draws(images, monkeypatch):
    """Each image's sub-policy, steps and signs are given to torchvision for what it would draw."""
    transform = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    rows = images[np.arange(300) % len(images)]
    draws = autoaugment.draw(jax.random.key(0), len(rows))
    assert len(np.unique(draws.sub_policy)) == len(transform._policies) == 25
    ours = np.asarray(jax.jit(autoaugment.run, static_argnums=2)(rows, draws, "nearest"))
    inexact = np.zeros(len(rows), bool)
    difference = np.zeros(ours.shape, int)
    for i, (sub_policy, done, negative) in enumerate(zip(*map(np.asarray, draws), strict=True)):
        randoms = []
        for step, theirs in enumerate(transform._policies[sub_policy]):
            name, probability, bin = autoaugment.SUB_POLICIES[sub_policy][step]
            assert (name.replace("_", ""), probability, bin) == (
                theirs[0].lower(), theirs[1], theirs[2] or 0
            )  # fmt: skip
            randoms.append(0.0 if done[step] else 1.1)
            if done[step] and transform._AUGMENTATION_SPACE[theirs[0]][1]:
                randoms.append(0.0 if negative[step] else 1.0)
            inexact[i] |= done[step] and name in ("color", "contrast", "sharpness")
        replay = iter(randoms)
        monkeypatch.setattr(torch, "randint", lambda *_, value=sub_policy: value)
        monkeypatch.setattr(torch, "rand", lambda *_, replay=replay: next(replay))
        want = transform(to_torch(rows[i : i + 1]))[0].permute(1, 2, 0).numpy()
        assert next(replay, None) is None
        difference[i] = np.abs(ours[i].astype(int) - want)
    assert inexact.sum() > 30
    # A rotation may differ at a point half-way between two pixels.
    assert (difference[~inexact] > 0).mean() < 1e-4
    # What follows a blend may enlarge its last bit.
    assert (difference[inexact] > 0).mean() < RARE
    assert (difference[inexact] > 2).mean() < 1e-3


def matrix_of(operation: str, value: float) -> np.ndarray:
    one = jnp.full(1, value)
    matrix = {
        "shear_x": lambda: operations.shear_x(one, HEIGHT),
        "shear_y": lambda: operations.shear_y(one, WIDTH),
        "rotate": lambda: operations.rotate(one),
    }[operation]()
    return np.asarray(matrix[0], np.float64)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_targets_and_smoothed_loss(images, kind):
    """torchvision draws; with the same draws our images, targets and loss are the same."""
    torch.manual_seed(3)
    classes, labels = 9, np.array([3, 1, 4, 1, 5, 2])
    transform = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](alpha=1.0, num_classes=classes)
    pixels = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    x, y = transform(to_torch(pixels), torch.from_numpy(labels))
    x = x.permute(0, 2, 3, 1).numpy()
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    if kind == "mixup":
        kept = float(y[0, 3])
        weight = np.full((HEIGHT, WIDTH), kept, np.float32)
    else:
        weight = (x == pixels).all(axis=(0, 3)).astype(np.float32)
        kept = weight.mean(dtype=float)
        assert 0 < kept < 1
    mixed, targets = mixing.blend(
        jnp.asarray(pixels), jnp.asarray(one_hot), jnp.asarray(weight), kept
    )
    np.testing.assert_allclose(mixed, x, atol=1e-5)
    np.testing.assert_allclose(targets, y, atol=1e-6)
    logits = np.random.default_rng(1).normal(size=(len(labels), classes)).astype(np.float32)
    want = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(torch.from_numpy(logits), y)
    got = cross_entropy(jnp.asarray(logits), targets, 0.1).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_cutmix_boxes_are_drawn_as_torchvisions():
    """The same lam: means and deviations of the share that is kept."""
    torch.manual_seed(0)
    transform = v2.CutMix(alpha=1.0, num_classes=2)
    sample = [torch.zeros(2, 3, HEIGHT, WIDTH)]
    theirs = [transform.make_params(sample)["lam_adjusted"] for _ in range(4000)]
    keys = jax.random.split(jax.random.key(0), 4000)
    lam = jax.random.uniform(jax.random.key(1), (4000,))
    draw = jax.jit(jax.vmap(lambda a, k: mixing.cutmix_weight(a, k, HEIGHT, WIDTH).mean()))
    ours = np.asarray(draw(lam, keys))
    assert abs(ours.mean() - np.mean(theirs)) < 0.03
    assert abs(ours.std() - np.std(theirs)) < 0.02


def test_erased_boxes_are_drawn_as_torchvisions():
    torch.manual_seed(0)
    transform = v2.RandomErasing(p=1.0)
    sample = [torch.zeros(3, HEIGHT, WIDTH)]
    draws = (transform.make_params(sample) for _ in range(3000))
    theirs = np.array([[p[k] for k in "ijhw"] for p in draws], float)
    ours = np.asarray(erasing.boxes(jax.random.key(0), 3000, HEIGHT, WIDTH, 1.0), float)
    error = 5 * theirs.std(axis=0) / np.sqrt(1500)  # of the difference of two means
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.06)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("increasing", [False, True])
def test_amounts_of_timms_randaugment(increasing, negative, monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    monkeypatch.setattr(timm, "_randomly_negate", lambda value: -value if negative else value)
    suffix = "Increasing" if increasing else ""
    for level in (0.0, 1.7, 5.0, 9.0, 10.0):
        draws = np.full(1, level), np.full(1, negative)
        ours = {k: float(v[0]) for k, v in policies.timm_amounts(*draws, 1, 1, increasing).items()}
        theirs = {
            name: timm.LEVEL_TO_ARG[name + suffix](level, {})[0]
            for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
        }
        assert ours["posterize"] == theirs.pop("Posterize")
        assert 255 * ours["solarize"] + 0.5 == pytest.approx(theirs.pop("Solarize"), abs=1e-4)
        for name, factor in theirs.items():
            assert 1 + ours[name.lower()] == pytest.approx(factor)
