"""BiT-S R50x1 (Kolesnikov et al. 2020, arXiv:1912.11370): a ResNet-v2 with group norm and weight
standardisation instead of batch norm, trained on ImageNet alone.

Source: the paper on pre-training BiT-S; github.com/google-research/big_vision, bit_i1k.py, for the
pixels' range and for decay of kernels alone. Published top-1: 76.0 % (the paper's comparison of
norms on ResNet-50 at 4,096 images: group norm with weight standardisation).

    batch   lr             schedule                    warm-up        momentum  weight decay  epochs
    4096    0.03 per 256   x0.1 at 30, 60 and 80       5,000 steps    0.9       1e-4          90
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config(arg: str = "") -> ConfigDict:
    c = defaults("bit_r50x1")
    c.epochs = 90.0
    c.batch_size = 4096

    c.optim.name = "sgd"
    c.optim.base_lr = 0.03
    c.optim.momentum = 0.9
    c.optim.schedule = "step"
    c.optim.milestones = (30.0, 60.0, 80.0)
    c.optim.decay_factor = 0.1
    c.optim.warmup_epochs = 5000 * 4096 / 1_281_167
    c.optim.weight_decay = 1e-4
    c.optim.decay_bias_and_norm = False

    c.data.mean = (0.5, 0.5, 0.5)
    c.data.std = (0.5, 0.5, 0.5)

    c.augment.image_size = 224
    c.eval.resize = 256
    c.eval.image_size = 224

    c.model.dtype = "bfloat16"
    return c
