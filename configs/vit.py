"""Vision Transformers trained only on ImageNet-1k, by five recipes.

    python -m imagenet_jax.main --config=configs/vit.py             vit_s16_90ep
    python -m imagenet_jax.main --config=configs/vit.py:deit3_s

Each recipe below gives its source and published top-1, for a single center crop of 224.

             batch  peak lr  warm-up       weight decay  mixup, cutmix  other augmentation  epochs
    vit_s16  1024   1e-3     10,000 steps  1e-4 / lr     0.2, 0         RandAugment 2, 10   90, 300
    vit_b16  4096   3e-3     30 epochs     0.3, of all   0.2, 1         RandAugment         300
    deit_s   1024   1e-3     5 epochs      0.05          0.8, 1         RandAugment, erase  300
    deit3_s  2048   4e-3     5 epochs      0.05          0.8, 1         3-Augment, jitter   800

Schedules of the last two start with the first epoch here, and one epoch later in the authors' code.
RandAugment of deit_s shears and rotates with bilinear interpolation here, bicubic in the authors'.
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults


def get_config(variant: str = "vit_s16_90ep") -> ConfigDict:
    recipe = pick_variant(variant, VARIANTS)
    c = defaults("vit_b16" if variant == "vit_b16" else "vit_s16")
    c.model.dtype = "bfloat16"
    c.optim.update(schedule="cosine", b1=0.9, b2=0.999, eps=1e-8)
    c.augment.image_size = 224
    c.eval.update(resize=256, image_size=224)
    recipe(c)
    return c


def vit_s16_90ep(c: ConfigDict) -> None:
    """ViT-S/16: 76.5 %, Beyer et al. 2022, arXiv:2205.01580, 90 epochs.

    Source: big_vision, configs/vit_s16_i1k.py, where the last 1 % of the training images is held
    out and GELU is approximated.
    """
    c.update(batch_size=1024, epochs=90.0)
    c.model.update(pool="mean", positions="sincos2d", head="mlp", init="big_vision")
    c.optim.update(name="adamw", base_lr=1e-3, base_batch_size=1024, grad_clip_norm=1.0)
    c.optim.update(warmup_epochs=10_000 * 1024 / 1_281_167)
    # big_vision's 1e-4 is not multiplied by the learning rate.
    c.optim.update(weight_decay=1e-4 / 1e-3, decay_bias_and_norm=False)
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.update(crop_scale=(0.05, 1.0), mixup=0.2)
    c.augment.update(auto_augment="randaugment_plain", auto_num_ops=2, auto_magnitude=10)


def vit_s16_300ep(c: ConfigDict) -> None:
    """ViT-S/16: 80.0 %, Beyer et al. 2022, 300 epochs."""
    vit_s16_90ep(c)
    c.epochs = 300.0


def vit_b16(c: ConfigDict) -> None:
    """ViT-B/16: 81.07 %, top-5 95.32 %, torchvision, references/classification."""
    c.update(batch_size=4096, epochs=300.0)
    c.optim.update(name="adamw", base_lr=3e-3, base_batch_size=4096, grad_clip_norm=1.0)
    c.optim.update(schedule_by="epoch", warmup_epochs=30.0, warmup_start_lr=0.033 * 3e-3)
    c.optim.update(weight_decay=0.3, decay_bias_and_norm=True)
    c.data.update(repeated_aug=3)
    c.augment.update(auto_augment="randaugment", mixup=0.2, cutmix=1.0)
    c.loss.update(label_smoothing=0.11)
    c.ema.update(decay=0.99998, form="torchvision", every_steps=32)


def deit_s(c: ConfigDict) -> None:
    """ViT-S/16: 79.9 %, DeiT without distillation (Touvron et al. 2020, arXiv:2012.12877).

    Source: facebookresearch/deit, main.py.
    """
    c.update(batch_size=1024, epochs=300.0)
    c.model.update(init="timm", drop_path=0.1)
    c.optim.update(name="adamw", base_lr=5e-4 * 1024 / 512, base_batch_size=1024)
    c.optim.lr_scaling = "linear"
    _cosine_of_timm(c)
    c.augment.update(auto_augment="randaugment_timm", auto_magnitude=9, auto_magnitude_std=0.5)
    c.augment.update(random_erase=0.25, random_erase_fill="noise")
    c.loss.update(label_smoothing=0.1)


def deit3_s(c: ConfigDict) -> None:
    """ViT-S/16: 81.4 %, DeiT III (Touvron et al. 2022, arXiv:2204.07118).

    Source: facebookresearch/deit, README_revenge.md. Clipping and the evaluation crop are from the
    table of the paper, from memory.
    """
    c.update(batch_size=2048, epochs=800.0)
    c.model.update(init="timm", positions="learned_patches", layer_scale=1e-4)
    c.model.update(drop_path=0.05, drop_path_form="constant")
    c.optim.update(name="lamb", base_lr=4e-3, base_batch_size=2048, grad_clip_norm=1.0)
    _cosine_of_timm(c)
    c.augment.update(auto_augment="three_augment", color_jitter=(0.3, 0.3, 0.3, 0.0))
    c.loss.update(name="bce", bce_threshold=1e-6)  # every class in a mixed image is a target
    c.eval.update(resize=224)


def _cosine_of_timm(c: ConfigDict) -> None:
    """Set what DeiT and DeiT III share."""
    c.optim.update(schedule_by="epoch", decay_from=0.0, end_lr=1e-5)
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=1e-6)
    c.optim.update(weight_decay=0.05, decay_bias_and_norm=False)
    c.data.update(interpolation="bicubic", repeated_aug=3, remainder="drop")
    c.augment.update(mixup=0.8, cutmix=1.0)


VARIANTS = {
    "vit_s16_90ep": vit_s16_90ep,
    "vit_s16_300ep": vit_s16_300ep,
    "vit_b16": vit_b16,
    "deit_s": deit_s,
    "deit3_s": deit3_s,
}
