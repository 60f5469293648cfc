"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as torchvision trained it (V1 weights).

    python -m imagenet_jax.main --config=configs/mobilenet.py

Source: github.com/pytorch/vision, references/classification. 71.88 %, top-5 90.29 %, with a single
center crop of 224 from 256.

    batch   lr      schedule         momentum  weight decay          dropout  epochs
    256     0.045   x0.98 an epoch   0.9       4e-5, all parameters  0.2      300
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("mobilenet_v2")
    c.model.update(dropout=0.2, dtype="bfloat16")
    c.update(batch_size=256, epochs=300.0)
    c.optim.update(name="sgd", base_lr=0.045, momentum=0.9)
    c.optim.update(schedule="exponential", decay_factor=0.98, decay_every_epochs=1.0)
    c.optim.update(weight_decay=4e-5, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
