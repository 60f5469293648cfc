"""ResNet-50 v1.5 (He et al. 2015, arXiv:1512.03385) by every recipe with a published accuracy.

    python -m imagenet_jax.main --config=configs/resnet50.py          v1
    python -m imagenet_jax.main --config=configs/resnet50.py:a3

Each variant reads like the table of its source. Other fields have their defaults, which
--help_config prints. Accuracies are top-1 for a single 224x224 center crop of the validation split,
unless stated otherwise. Two things differ from the sources: recipes without weight decay of norms
do not decay the bias of the last layer either, and initial weights are always torchvision's.
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults


def get_config(variant: str = "v1") -> ConfigDict:
    c = defaults("resnet50")
    c.model.dtype = "bfloat16"
    pick_variant(variant, VARIANTS)(c)
    return c


def v1(c: ConfigDict) -> None:
    """76.13 %, top-5 92.86 %: torchvision's references/classification, IMAGENET1K_V1."""
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.1, momentum=0.9)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)


def adam(c: ConfigDict) -> None:
    """v1 with Adam (Kingma & Ba 2014, arXiv:1412.6980), an ablation without published accuracy."""
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="adam", base_lr=0.001, b1=0.9, b2=0.999, eps=1e-8)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    c.optim.update(weight_decay=1e-4, weight_decay_form="l2", decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)


def goyal8k(c: ConfigDict) -> None:
    """76.26 %: Goyal et al. 2017, arXiv:1706.02677, table 1, 8,192 images on 256 GPUs."""
    c.update(batch_size=8192, epochs=90.0)
    c.model.update(zero_init_residual=True, bn_group=32)
    c.optim.update(name="sgd", base_lr=0.1, lr_scaling="linear", momentum=0.9, nesterov=True)
    c.optim.update(schedule="step", milestones=(30.0, 60.0, 80.0), decay_factor=0.1)
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=0.1 / 32)  # 0.1 at 8,192 images
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=False)


def flax(c: ConfigDict) -> None:
    """76.37 %: github.com/google/flax, examples/imagenet, configs/tpu.py on a TPU v3-8."""
    c.update(batch_size=1024, epochs=100.0)
    c.model.update(zero_init_residual=True, bn_group=128)
    c.optim.update(name="sgd", base_lr=0.1, lr_scaling="linear", momentum=0.9, nesterov=True)
    c.optim.update(schedule="cosine", warmup_epochs=5.0)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=False)
    c.data.update(interpolation="bicubic", remainder="drop")


def nvidia90(c: ConfigDict) -> None:
    """77.15 %: NVIDIA DeepLearningExamples, resnet50v1.5 in PyTorch, 90 epochs on 8 GPUs.

    The README also gives 77.12 +- 0.11 (8 A100) and 77.10 +- 0.06 (16 V100). During warm-up of 8
    epochs, the learning rate rises from 1/8 of the peak in the first epoch to the peak in the last.
    """
    c.update(batch_size=2048, epochs=90.0)
    c.model.update(bn_group=256)
    c.optim.update(name="sgd", base_lr=0.256, lr_scaling="linear", momentum=0.875)
    c.optim.update(schedule="cosine", schedule_by="epoch", decay_from=8.0)
    c.optim.update(warmup_epochs=7.0, warmup_start_lr=0.256 / 8)
    c.optim.update(weight_decay=1 / 32768, decay_bias_and_norm=False)
    c.loss.update(label_smoothing=0.1)


def mlperf_lars(c: ConfigDict) -> None:
    """75.9 % by epoch 35: MLPerf Training v1.0 and v2.0, closed division, on one DGX A100.

    NVIDIA's settings: mlcommons/training_results_v2.0, config_DGXA100.sh, 408 images on each of 8
    GPUs.
    """
    c.update(batch_size=3264, epochs=37.0)
    c.model.update(bn_group=408)
    c.optim.update(name="lars", base_lr=10.5, base_batch_size=3264, momentum=0.9)
    c.optim.update(schedule="polynomial", power=2.0, end_lr=1e-4, warmup_epochs=2.0)
    c.optim.update(weight_decay=5e-5, decay_bias_and_norm=False)
    c.loss.update(label_smoothing=0.1)


def ffcv16(c: ConfigDict) -> None:
    """73.8 %, top-5 90.8 %: FFCV, 16 epochs."""
    _ffcv(c, epochs=16.0, growth=(11.0, 13.0))


def ffcv32(c: ConfigDict) -> None:
    """76.6 %, top-5 92.7 %: FFCV, 32 epochs."""
    _ffcv(c, epochs=32.0, growth=(23.0, 27.0))


def ffcv88(c: ConfigDict) -> None:
    """78.4 %, top-5 94.1 %: FFCV, 88 epochs."""
    _ffcv(c, epochs=88.0, growth=(65.0, 76.0))


def _ffcv(c: ConfigDict, *, epochs: float, growth: tuple[float, float]) -> None:
    """Set the recipe of github.com/libffcv/ffcv-imagenet, rn50_configs, on 8 GPUs.

    The learning rate decreases linearly from epoch 2, and crops grow from 160 to 192 pixels.
    Evaluation averages each 256x256 crop, 7/8 of the shorter side, with its mirror image.
    """
    c.update(batch_size=4096, epochs=epochs)
    c.model.update(blur_pool="ffcv", bn_group=512)
    c.optim.update(name="sgd", base_lr=1.7, base_batch_size=4096, momentum=0.9)
    c.optim.update(schedule="polynomial", warmup_epochs=2.0, warmup_start_lr=1.7e-4)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=False)
    c.data.update(remainder="drop")
    c.augment.update(start_size=160, image_size=192, size_ramp=growth)
    c.loss.update(label_smoothing=0.1)
    c.eval.update(resize=293, image_size=256, flip=True)


def v2(c: ConfigDict) -> None:
    """80.858 %, top-5 95.434 %, trained at 176x176: torchvision, IMAGENET1K_V2.

    128 images on each of 8 GPUs. The published weights are the EMA weights.
    """
    c.update(batch_size=1024, epochs=600.0)
    c.model.update(bn_group=128)
    c.optim.update(name="sgd", base_lr=0.5, base_batch_size=1024, momentum=0.9)
    c.optim.update(schedule="cosine", schedule_by="epoch")
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=0.005)
    c.optim.update(weight_decay=2e-5, decay_bias_and_norm=False)
    c.data.update(repeated_aug=4)
    c.augment.update(image_size=176, auto_augment="trivialaugment", random_erase=0.1)
    c.augment.update(mixup=0.2, cutmix=1.0)
    c.loss.update(label_smoothing=0.1)
    c.ema.update(decay=0.99998, form="torchvision", every_steps=32)
    c.eval.update(resize=232)


def a1(c: ConfigDict) -> None:
    """80.38 %: Wightman et al. 2021, A1, 600 epochs."""
    _strikes_back(c, lr=5e-3)
    c.epochs = 600.0
    c.model.drop_path = 0.05
    c.optim.weight_decay = 0.01
    c.data.repeated_aug = 3
    c.augment.update(image_size=224, auto_magnitude=7, mixup=0.2)
    c.loss.update(label_smoothing=0.1)  # a bce_threshold would undo the smoothing


def a2(c: ConfigDict) -> None:
    """79.83 %: Wightman et al. 2021, A2, 300 epochs."""
    _strikes_back(c, lr=5e-3)
    c.epochs = 300.0
    c.model.drop_path = 0.05
    c.optim.weight_decay = 0.02
    c.data.repeated_aug = 3
    c.augment.update(image_size=224, auto_magnitude=7, mixup=0.1)
    c.loss.update(bce_threshold=0.2)


def a3(c: ConfigDict) -> None:
    """78.05 %, trained at 160x160: Wightman et al. 2021, A3, 100 epochs."""
    _strikes_back(c, lr=8e-3)
    c.epochs = 100.0
    c.optim.weight_decay = 0.02
    c.augment.update(image_size=160, auto_magnitude=6, mixup=0.1)
    c.loss.update(bce_threshold=0.2)


def _strikes_back(c: ConfigDict, *, lr: float) -> None:
    """Set what A1, A2 and A3 share (arXiv:2110.00476, table 2), on 4 GPUs.

    RandAugment is rand-m7-mstd0.5-inc1 (m6 in A3). As in timm, the cosine includes the warm-up, and
    the learning rate changes once per epoch. At another batch size, it is scaled by the square
    root, as in the paper of LAMB.
    """
    c.batch_size = 2048
    c.model.update(zero_init_residual=True, bn_group=512)
    c.optim.update(name="lamb", base_lr=lr, base_batch_size=2048, lr_scaling="sqrt", eps=1e-6)
    c.optim.update(schedule="cosine", schedule_by="epoch", decay_from=0.0, end_lr=1e-6)
    c.optim.update(warmup_epochs=5.0, warmup_start_lr=1e-4, grad_clip_norm=1.0)
    c.optim.update(decay_bias_and_norm=False)
    c.data.update(interpolation="bicubic", remainder="drop")
    c.augment.update(auto_augment="randaugment_timm", auto_magnitude_std=0.5, cutmix=1.0)
    c.loss.update(name="bce")
    c.eval.update(resize=235, image_size=224)  # crop ratio 0.95


VARIANTS = {
    "v1": v1,
    "goyal8k": goyal8k,
    "flax": flax,
    "nvidia90": nvidia90,
    "mlperf_lars": mlperf_lars,
    "ffcv16": ffcv16,
    "ffcv32": ffcv32,
    "ffcv88": ffcv88,
    "v2": v2,
    "a1": a1,
    "a2": a2,
    "a3": a3,
    "adam": adam,
}
