"""The network of Flax's MNIST example on 1,797 scanned digits, in about a minute without a GPU.

It classifies 357 of the 360 validation images correctly, 99.17 % (seed 0, on two CPU cores):

    python -m imagenet_jax.main --config=configs/small_cnn.py --workdir=runs/small_cnn

    model              images         batch  optimizer       schedule                 epochs
    SmallCNN           1,437 at 28x28 64     SGD, Nesterov   cosine, 1 epoch warm-up  16

The digits are those of configs/quickstart.py, with the same split.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("small_cnn")
    c.update(batch_size=64, epochs=16.0)
    c.model.num_classes = 10
    c.data.update(source="digits", path="runs/data/digits/1.0.0")
    c.data.update(mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
    c.augment.update(image_size=28, crop_scale=(0.7, 1.0))
    c.augment.flip = False  # a mirrored digit is a different digit
    c.optim.update(base_lr=0.02, base_batch_size=64, nesterov=True)
    c.optim.update(schedule="cosine", warmup_epochs=1.0)
    c.optim.update(weight_decay=5e-4, decay_bias_and_norm=False)
    c.eval.update(resize=28, image_size=28, batch_size=120, every_epochs=4.0)
    c.checkpoint.every_epochs = 4.0
    c.log.every_steps = 20
    return c
