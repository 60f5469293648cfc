"""ResNet-50 v1.5 (He et al. 2015, arXiv:1512.03385) by every recipe that has published a number.

    python -m imagenet_jax.main --config=configs/resnet50.py          the first of them, v1
    python -m imagenet_jax.main --config=configs/resnet50.py:a3

Top-1 is of one 224x224 centre crop of the validation split unless the variant says otherwise. Each
variant below is its difference from v1; the comment names its source and what we cannot follow.
All leave out of weight decay the bias of the last layer too where they leave out norms, and start
from torchvision's initial weights.
"""

import difflib
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError

Fields = dict[str, Any]

_COSINE: Fields = {"optim.schedule": "cosine", "optim.warmup_epochs": 5.0}
_BY_EPOCH: Fields = {"optim.schedule_by": "epoch"}
_WHOLE_BATCHES: Fields = {"data.remainder": "drop"}  # their loaders leave the rest out
_NO_NORM_DECAY: Fields = {"optim.decay_bias_and_norm": False}

# github.com/libffcv/ffcv-imagenet, rn50_configs: 512 images on each of 8 GPUs, a rate that falls in
# a straight line from epoch 2, crops that grow from 160 to 192. Images are evaluated with their
# mirror image at 256x256, cropped from 7/8 of the shorter side.
_FFCV: Fields = {
    **_NO_NORM_DECAY,
    **_WHOLE_BATCHES,
    "batch_size": 4096,
    "model.bn_group": 512,
    "model.blur_pool": "ffcv",
    "augment.start_size": 160,
    "augment.image_size": 192,
    "loss.label_smoothing": 0.1,
    "optim.base_batch_size": 4096,
    "optim.base_lr": 1.7,
    "optim.schedule": "polynomial",
    "optim.warmup_epochs": 2.0,
    "optim.warmup_start_lr": 1.7e-4,
    "eval.resize": 293,
    "eval.image_size": 256,
    "eval.flip": True,
}

# Wightman et al. 2021, arXiv:2110.00476, table 2; A2 is the base of A1 and A3. RandAugment is
# rand-m7-mstd0.5-inc1. timm's LAMB clips, its warm-up starts at 1e-4, and its cosine spans the
# warm-up too; the rate changes once an epoch.
_A2: Fields = {
    **_COSINE,
    **_BY_EPOCH,
    **_WHOLE_BATCHES,
    **_NO_NORM_DECAY,
    "batch_size": 2048,
    "epochs": 300.0,
    "model.zero_init_residual": True,
    "model.drop_path": 0.05,
    "model.bn_group": 512,  # 4 GPUs
    "data.interpolation": "bicubic",
    "data.repeated_aug": 3,
    "augment.auto_augment": "randaugment_timm",
    "augment.auto_magnitude": 7,
    "augment.auto_magnitude_std": 0.5,
    "augment.mixup": 0.1,
    "augment.cutmix": 1.0,
    "loss.name": "bce",
    "loss.bce_threshold": 0.2,
    "optim.name": "lamb",
    "optim.lr_scaling": "sqrt",  # the rule of LAMB's paper, should the batch be another
    "optim.base_batch_size": 2048,
    "optim.base_lr": 5e-3,
    "optim.decay_from": 0.0,
    "optim.warmup_start_lr": 1e-4,
    "optim.end_lr": 1e-6,
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.02,
    "optim.grad_clip_norm": 1.0,
    "eval.resize": 235,  # crop ratio 0.95
}

VARIANTS: dict[str, Fields] = {
    # 76.13: torchvision's references/classification, ResNet50_Weights.IMAGENET1K_V1, top-5 92.86.
    "v1": {},
    # 76.26: Goyal et al. 2017, arXiv:1706.02677, table 1, 8,192 images on 256 GPUs.
    "goyal8k": {
        **_NO_NORM_DECAY,
        "batch_size": 8192,
        "model.zero_init_residual": True,
        "model.bn_group": 32,
        "optim.nesterov": True,
        "optim.warmup_epochs": 5.0,
        "optim.warmup_start_lr": 0.1 / 32,  # 0.1 at 8,192 images
        "optim.milestones": (30.0, 60.0, 80.0),
    },
    # 76.37: github.com/google/flax, examples/imagenet, configs/tpu.py on a TPU v3-8.
    "flax": {
        **_COSINE,
        **_WHOLE_BATCHES,
        **_NO_NORM_DECAY,
        "batch_size": 1024,
        "epochs": 100.0,
        "model.zero_init_residual": True,
        "model.bn_group": 128,
        "data.interpolation": "bicubic",
        "optim.nesterov": True,
    },
    # 77.15: NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5, 90 epochs on
    # 8 GPUs; its README also gives 77.12 +- 0.11 (8 A100) and 77.10 +- 0.06 (16 V100). Its
    # warm-up of 8 epochs has 1/8 of the peak in the first epoch and the peak in the last.
    "nvidia90": {
        **_COSINE,
        **_BY_EPOCH,
        **_NO_NORM_DECAY,
        "batch_size": 2048,
        "model.bn_group": 256,
        "loss.label_smoothing": 0.1,
        "optim.base_lr": 0.256,
        "optim.warmup_epochs": 7.0,
        "optim.warmup_start_lr": 0.256 / 8,
        "optim.decay_from": 8.0,
        "optim.momentum": 0.875,
        "optim.weight_decay": 1 / 32768,
    },
    # 75.9 by epoch 35: MLPerf Training v1.0 and v2.0, closed division; NVIDIA's settings for one
    # DGX A100 (mlcommons/training_results_v2.0, config_DGXA100.sh), 408 images on each of 8 GPUs.
    "mlperf_lars": {
        **_NO_NORM_DECAY,
        "batch_size": 3264,
        "epochs": 37.0,
        "model.bn_group": 408,
        "loss.label_smoothing": 0.1,
        "optim.name": "lars",
        "optim.base_batch_size": 3264,
        "optim.base_lr": 10.5,
        "optim.schedule": "polynomial",
        "optim.power": 2.0,
        "optim.end_lr": 1e-4,
        "optim.warmup_epochs": 2.0,
        "optim.weight_decay": 5e-5,
    },
    # 73.8, 76.6 and 78.4.
    "ffcv16": {**_FFCV, "epochs": 16.0, "augment.size_ramp": (11.0, 13.0)},
    "ffcv32": {**_FFCV, "epochs": 32.0, "augment.size_ramp": (23.0, 27.0)},
    "ffcv88": {**_FFCV, "epochs": 88.0, "augment.size_ramp": (65.0, 76.0)},
    # 80.858, trained at 176x176: torchvision's references/classification, IMAGENET1K_V2, top-5
    # 95.434; 128 images on each of 8 GPUs; the averaged weights are those published.
    "v2": {
        **_COSINE,
        **_BY_EPOCH,
        **_NO_NORM_DECAY,
        "batch_size": 1024,
        "epochs": 600.0,
        "model.bn_group": 128,
        "data.repeated_aug": 4,
        "augment.image_size": 176,
        "augment.auto_augment": "trivialaugment",
        "augment.random_erase": 0.1,
        "augment.mixup": 0.2,
        "augment.cutmix": 1.0,
        "loss.label_smoothing": 0.1,
        "optim.base_batch_size": 1024,
        "optim.base_lr": 0.5,
        "optim.warmup_start_lr": 0.005,
        "optim.weight_decay": 2e-5,
        "ema.decay": 0.99998,
        "ema.form": "torchvision",
        "ema.every_steps": 32,
        "eval.resize": 232,
    },
    # 80.38, 600 epochs: Wightman et al. 2021, A1.
    "a1": {
        **_A2,
        "epochs": 600.0,
        "augment.mixup": 0.2,
        "loss.label_smoothing": 0.1,
        "loss.bce_threshold": 0.0,  # which would undo the smoothing
        "optim.weight_decay": 0.01,
    },
    # 79.83: Wightman et al. 2021, A2.
    "a2": _A2,
    # 78.05, trained at 160x160: Wightman et al. 2021, A3.
    "a3": {
        **_A2,
        "epochs": 100.0,
        "model.drop_path": 0.0,
        "data.repeated_aug": 1,
        "augment.image_size": 160,
        "augment.auto_magnitude": 6,
        "optim.base_lr": 8e-3,
    },
}


def get_config(variant: str = "v1", model: str = "resnet50") -> ConfigDict:
    """The recipe of that name; `model` is another ResNet, for which the number differs."""
    if variant not in VARIANTS:
        near = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"config variant {variant!r}: use {' | '.join(VARIANTS)}{hint}")
    c = defaults(model)
    c.model.dtype = "bfloat16"

    c.epochs = 90.0
    c.batch_size = 256

    c.optim.name = "sgd"
    c.optim.base_lr = 0.1
    c.optim.momentum = 0.9
    c.optim.schedule = "step"
    c.optim.milestones = (30.0, 60.0)
    c.optim.decay_factor = 0.1
    c.optim.weight_decay = 1e-4
    c.optim.decay_bias_and_norm = True

    c.augment.image_size = 224
    c.eval.resize = 256
    c.eval.image_size = 224

    c.update_from_flattened_dict(VARIANTS[variant])
    return c
