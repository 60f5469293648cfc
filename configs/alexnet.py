"""AlexNet (Krizhevsky 2014, arXiv:1404.5997) as torchvision trained it (V1 weights).

    python -m imagenet_jax.main --config=configs/alexnet.py

Source: github.com/pytorch/vision, references/classification. 56.52 %, top-5 79.07 %, with a single
center crop of 224 from 256.

    batch   lr     schedule           momentum  weight decay          dropout  epochs
    256     0.01   x0.1 at 30 and 60  0.9       1e-4, all parameters  0.5      90
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("alexnet")
    c.model.update(dropout=0.5, dtype="bfloat16")
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.01, momentum=0.9)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
