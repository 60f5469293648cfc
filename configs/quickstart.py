"""A small ResNet on scikit-learn's 1,797 scanned digits, trained in about a minute without a GPU.

The digits are written once as PNG files in the format of ImageNet and read by the same pipeline.

    model               images         batch  optimizer       schedule                 epochs
    ResNet-18, width/8  1,437 at 32x32 64     SGD, Nesterov   cosine, 1 epoch warm-up  16
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("resnet18")
    c.update(batch_size=64, epochs=16.0)
    c.model.update(num_classes=10, width=0.125, stem="small")
    c.data.update(source="digits", path="runs/data/digits/1.0.0")
    c.data.update(mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
    c.augment.update(image_size=32, crop_scale=(0.7, 1.0))
    c.augment.flip = False  # a mirrored digit is a different digit
    c.optim.update(base_lr=0.1, base_batch_size=64, nesterov=True)
    c.optim.update(schedule="cosine", warmup_epochs=1.0)
    c.optim.update(weight_decay=5e-4, decay_bias_and_norm=False)
    c.loss.label_smoothing = 0.1
    c.ema.decay = 0.98
    c.eval.update(resize=32, image_size=32, batch_size=120, every_epochs=4.0)
    c.checkpoint.every_epochs = 4.0
    c.log.every_steps = 20
    return c
