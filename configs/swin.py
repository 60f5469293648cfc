"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) as torchvision trained it.

    python -m imagenet_jax.main --config=configs/swin.py            swin_t
    python -m imagenet_jax.main --config=configs/swin.py:swin_s

Source: github.com/pytorch/vision, pull request 6048. Accuracies are with a single center crop of
224, from images resized to 232, 246 and 238 pixels. torchvision also shears and rotates images with
bicubic interpolation; here it is bilinear.

    batch  peak lr  last lr  schedule  weight decay             clipping  mixup, cutmix  epochs
    1024   0.001    1e-5     cosine    0.05, not of the biases  5         0.8, 1         300
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "swin_t": "Swin-T: 81.47 %, top-5 95.78 %",
    "swin_s": "Swin-S: 83.20 %, top-5 96.36 %",
    "swin_b": "Swin-B: 83.58 %, top-5 96.64 %",
}
# Drop path, and resize in evaluation.
SETTINGS = {"swin_t": (0.2, 232), "swin_s": (0.3, 246), "swin_b": (0.5, 238)}


def get_config(model: str = "swin_t") -> ConfigDict:
    pick_variant(model, VARIANTS)
    drop_path, resize = SETTINGS[model]
    c = defaults(model)
    c.model.update(drop_path=drop_path, dtype="bfloat16")
    c.update(batch_size=1024, epochs=300.0)
    c.optim.update(name="adamw", base_lr=1e-3, base_batch_size=1024, b1=0.9, b2=0.999, eps=1e-8)
    c.optim.update(schedule="cosine", schedule_by="epoch", end_lr=1e-5)
    c.optim.update(warmup_epochs=20.0, warmup_start_lr=1e-5, grad_clip_norm=5.0)
    c.optim.update(weight_decay=0.05, weight_decay_form="decoupled", decay_bias_and_norm=False)
    c.data.update(interpolation="bicubic", repeated_aug=4)
    c.augment.update(image_size=224, auto_augment="trivialaugment", random_erase=0.25)
    c.augment.update(mixup=0.8, cutmix=1.0)
    c.loss.update(label_smoothing=0.1)
    c.ema.update(decay=0.99998, form="torchvision", every_steps=32)
    c.eval.update(resize=resize, image_size=224)
    return c
