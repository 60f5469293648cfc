"""A config whose steps take milliseconds: digits of 16x16 pixels, saved every 3 steps."""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults

STEP = 48 / 1437  # epochs in a step


def get_config(arg: str = "60") -> ConfigDict:
    """`arg`: steps of the run."""
    c = defaults("resnet18")
    c.epochs = int(arg) * STEP
    c.batch_size = 48
    c.model.num_classes = 10
    c.model.width = 1 / 16
    c.model.stem = "small"
    c.model.drop_path = 0.1  # random numbers on the device
    c.data.source = "digits"
    c.data.path = ""  # given by killing.py
    c.data.threads = 2
    c.augment.image_size = 16
    c.augment.mixup = 0.2
    c.eval.resize = c.eval.image_size = 16
    c.eval.batch_size = 120
    c.eval.every_epochs = 30 * STEP
    c.optim.base_lr = 0.05
    c.optim.base_batch_size = 48
    c.optim.schedule = "cosine"
    c.ema.decay = 0.9
    c.log.every_steps = 2
    c.checkpoint.every_epochs = 3 * STEP
    c.checkpoint.keep = 2
    return c
