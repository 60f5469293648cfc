"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) as its authors and as torchvision trained it.

    python -m imagenet_jax.main --config=configs/convnext.py                tiny, by the paper
    python -m imagenet_jax.main --config=configs/convnext.py:small
    python -m imagenet_jax.main --config=configs/convnext.py:torchvision_tiny

tiny to large: github.com/facebookresearch/ConvNeXt, TRAINING.md and the defaults of main.py.
torchvision_*: references/classification, where weight decay also applies to biases and layer
scales. Accuracies are for a single center crop of 224. RandAugment of the paper's code shears and
rotates images with bicubic interpolation; here it is bilinear.

                  batch  peak lr  schedule         weight decay  mixup, cutmix  erase  epochs
    tiny, ...     4096   4e-3     cosine by step   0.05          0.8, 1         0.25   300
    torchvision_  1024   1e-3     cosine by epoch  0.05          0.2, 1         0.1    600
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

# Drop path, and resize in torchvision's evaluation.
MODELS = {"tiny": (0.1, 236), "small": (0.4, 230), "base": (0.5, 232), "large": (0.5, 232)}
VARIANTS = {
    "tiny": "ConvNeXt-T: 82.1 %, the paper's recipe",
    "small": "ConvNeXt-S: 83.1 %, the paper's recipe",
    "base": "ConvNeXt-B: 83.8 %, the paper's recipe",
    "large": "ConvNeXt-L: 84.3 %, the paper's recipe",
    "torchvision_tiny": "ConvNeXt-T: 82.52 %, top-5 96.15 %, torchvision's recipe",
    "torchvision_small": "ConvNeXt-S: 83.62 %, top-5 96.65 %, torchvision's recipe",
    "torchvision_base": "ConvNeXt-B: 84.06 %, top-5 96.87 %, torchvision's recipe",
    "torchvision_large": "ConvNeXt-L: 84.41 %, top-5 96.98 %, torchvision's recipe",
}


def get_config(variant: str = "tiny") -> ConfigDict:
    pick_variant(variant, VARIANTS)
    size = variant.removeprefix("torchvision_")
    drop_path, resize = MODELS[size]
    c = defaults(f"convnext_{size}")
    c.model.update(drop_path=drop_path, dtype="bfloat16")
    c.optim.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, schedule="cosine")
    c.optim.update(weight_decay=0.05, weight_decay_form="decoupled", decay_bias_and_norm=False)
    c.loss.update(label_smoothing=0.1)
    if variant == size:
        paper(c)
    else:
        torchvision(c, resize)
    return c


def paper(c: ConfigDict) -> None:
    c.update(batch_size=4096, epochs=300.0)
    c.optim.update(base_lr=4e-3, base_batch_size=4096, warmup_epochs=20.0, end_lr=1e-6)
    c.data.update(interpolation="bicubic", remainder="drop")
    c.augment.update(auto_augment="randaugment_timm", auto_magnitude=9, auto_magnitude_std=0.5)
    c.augment.update(mixup=0.8, cutmix=1.0, random_erase=0.25, random_erase_fill="noise")
    c.ema.update(decay=0.9999)
    c.eval.update(resize=256, image_size=224)


def torchvision(c: ConfigDict, resize: int) -> None:
    c.update(batch_size=1024, epochs=600.0)
    c.optim.update(base_lr=1e-3, base_batch_size=1024, schedule_by="epoch")
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=1e-5)
    c.data.update(repeated_aug=4)
    c.augment.update(image_size=176, auto_augment="trivialaugment", random_erase=0.1)
    c.augment.update(mixup=0.2, cutmix=1.0)
    c.ema.update(decay=0.99998, form="torchvision", every_steps=32)
    c.eval.update(resize=resize, image_size=224)
