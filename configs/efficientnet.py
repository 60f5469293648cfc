"""EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946), -Lite0 and -V2-S (arXiv:2104.00298).

    python -m imagenet_jax.main --config=configs/efficientnet.py              B0 as timm trained it
    python -m imagenet_jax.main --config=configs/efficientnet.py:b0_paper
    python -m imagenet_jax.main --config=configs/efficientnet.py:lite0
    python -m imagenet_jax.main --config=configs/efficientnet.py:v2_s

b0: hfdocs/source/training_script.mdx of github.com/huggingface/pytorch-image-models, and the
    defaults of its train.py. 77.7 %, top-5 95.3 %.
b0_paper: section 5.2 of the paper; warm-up, label smoothing and crops of its published code, from
    memory. 77.1 %. Padding and batch norm are those of the authors (tf_efficientnet_b0).
lite0: the same recipe for Lite, for which no recipe is published. The authors' weights expect this
    data.mean and data.std. 75.1 %, from memory.
v2_s: references/classification of github.com/pytorch/vision. 84.23 %, top-5 96.88 %, with images of
    384x384.

              batch   lr      schedule            weight decay   augmentation    erase   epochs
    b0        768     0.048   x0.97 / 2.4 epochs  1e-5           RandAugment 9   0.2     450
    b0_paper  4,096   0.256   x0.97 / 2.4 epochs  1e-5           AutoAugment     0       350
    v2_s      1,024   0.5     cosine by epoch     2e-5           TrivialAugment  0.1     600

All have label smoothing 0.1, dropout 0.2 before the last layer, drop path up to 0.2, and EMA
weights. b0 and b0_paper use RMSprop (decay 0.9, momentum 0.9, epsilon 1e-3). v2_s uses SGD with
momentum 0.9, mixup 0.2, CutMix 1, and crops of 300x300, four from each image.
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults


def b0(c: ConfigDict) -> None:
    """EfficientNet-B0: 77.7 %, timm's recipe with RandAugment."""
    c.update(batch_size=768, epochs=450.0)
    c.model.update(bn_group=384)
    rmsprop(c, lr=0.048)
    c.optim.update(warmup_start_lr=1e-6, schedule_by="epoch")
    c.data.update(remainder="drop")
    c.augment.update(auto_augment="randaugment_timm", auto_magnitude=9, auto_magnitude_std=0.5)
    c.augment.update(auto_increasing=False)  # --aa rand-m9-mstd0.5, without inc1
    c.augment.update(random_erase=0.2, random_erase_fill="noise")


def b0_paper(c: ConfigDict) -> None:
    """EfficientNet-B0: 77.1 %, the recipe of its paper (arXiv:1905.11946), with AutoAugment."""
    c.update(batch_size=4096, epochs=350.0)
    rmsprop(c, lr=0.256)
    c.augment.update(auto_augment="autoaugment")


def lite0(c: ConfigDict) -> None:
    """EfficientNet-Lite0 by the recipe of B0's paper."""
    b0_paper(c)
    c.data.update(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def rmsprop(c: ConfigDict, lr: float) -> None:
    c.optim.update(name="rmsprop", b2=0.9, momentum=0.9, eps=1e-3)
    c.optim.update(base_lr=lr, base_batch_size=c.batch_size, warmup_epochs=5.0)
    c.optim.update(schedule="exponential", decay_factor=0.97, decay_every_epochs=2.4)
    c.optim.update(weight_decay=1e-5, decay_bias_and_norm=False)
    c.data.update(interpolation="bicubic")
    c.ema.update(decay=0.9999)
    c.eval.update(resize=256, image_size=224)


def v2_s(c: ConfigDict) -> None:
    """EfficientNetV2-S: 84.23 %, as torchvision trained it."""
    c.update(batch_size=1024, epochs=600.0)
    c.model.update(bn_group=128)
    c.optim.update(name="sgd", base_lr=0.5, base_batch_size=1024, momentum=0.9)
    c.optim.update(schedule="cosine", schedule_by="epoch")
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=0.005)
    c.optim.update(weight_decay=2e-5, decay_bias_and_norm=False)
    c.data.update(repeated_aug=4)
    c.augment.update(image_size=300, auto_augment="trivialaugment", random_erase=0.1)
    c.augment.update(mixup=0.2, cutmix=1.0)
    c.ema.update(decay=0.99998, form="torchvision", every_steps=32)
    c.eval.update(resize=384, image_size=384)


VARIANTS = {"b0": b0, "b0_paper": b0_paper, "lite0": lite0, "v2_s": v2_s}


def get_config(variant: str = "b0") -> ConfigDict:
    recipe = pick_variant(variant, VARIANTS)
    c = defaults("tf_efficientnet_b0" if recipe is b0_paper else f"efficientnet_{variant}")
    c.model.update(dropout=0.2, drop_path=0.2, dtype="bfloat16")
    c.loss.update(label_smoothing=0.1)
    recipe(c)
    return c
