"""A small ResNet on scikit-learn's 1,797 scanned digits: the whole path in about a minute, no GPU.

The digits are written once as PNGs in the format that ImageNet uses and read by the same pipeline.

    model               images         batch  optimizer       schedule                 epochs
    ResNet-18, width/8  1,437 at 32x32 64     SGD, Nesterov   cosine, 1 epoch warm-up  16
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config(arg: str = "") -> ConfigDict:
    c = defaults("resnet18")
    c.epochs = 16.0
    c.batch_size = 64

    c.model.num_classes = 10
    c.model.width = 0.125
    c.model.stem = "small"

    c.data.source = "digits"
    c.data.path = "runs/data/digits/1.0.0"
    c.data.mean = (0.3, 0.3, 0.3)
    c.data.std = (0.35, 0.35, 0.35)

    c.augment.image_size = 32
    c.augment.crop_scale = (0.7, 1.0)
    c.augment.flip = False  # a mirrored digit is another digit

    c.optim.base_lr = 0.1
    c.optim.base_batch_size = 64
    c.optim.nesterov = True
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 1.0
    c.optim.weight_decay = 5e-4
    c.optim.decay_bias_and_norm = False

    c.loss.label_smoothing = 0.1
    c.ema.decay = 0.98
    c.eval.resize = 32
    c.eval.image_size = 32
    c.eval.batch_size = 120
    c.eval.every_epochs = 4.0
    c.checkpoint.every_epochs = 4.0
    c.log.every_steps = 20
    return c
