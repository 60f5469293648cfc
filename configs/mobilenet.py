"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and V3 (Howard et al. 2019, arXiv:1905.02244)
as torchvision trained them (V1 weights).

    python -m imagenet_jax.main --config=configs/mobilenet.py
    python -m imagenet_jax.main --config=configs/mobilenet.py:mobilenet_v3_large

Source: github.com/pytorch/vision, references/classification. With a single center crop of 224 from
256:

                         top-1   top-5
    mobilenet_v2         71.88   90.29
    mobilenet_v3_large   74.04   91.34
    mobilenet_v3_small   67.67   87.40

                    batch   lr      schedule           weight decay   epochs
    mobilenet_v2    256     0.045   x0.98 an epoch     4e-5           300
    mobilenet_v3_   1,024   0.064   x0.973 / 2 epochs  1e-5           600

All parameters decay; dropout is 0.2. V2 is trained by SGD with momentum 0.9, V3 by RMSprop (decay
0.9, momentum 0.9, epsilon 0.0316) with AutoAugment and random erasing of 0.2. The
published weights of V3 are the mean of the last three checkpoints that improved. This command
writes the mean of the best three that the run has kept, which are the best one and the last ones:

    python -m imagenet_jax.convert --from=DIR --checkpoint=best --average=3 --to=FILE
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults


def v2(c: ConfigDict) -> None:
    """MobileNetV2: 71.88 %, as torchvision trained it (V1 weights)."""
    c.update(batch_size=256, epochs=300.0)
    c.optim.update(name="sgd", base_lr=0.045, momentum=0.9)
    c.optim.update(schedule="exponential", decay_factor=0.98, decay_every_epochs=1.0)
    c.optim.update(weight_decay=4e-5)


def v3(c: ConfigDict) -> None:
    """MobileNetV3 as torchvision trained it (V1 weights): large 74.04 %, small 67.67 %."""
    c.update(batch_size=1024, epochs=600.0)
    c.model.update(bn_group=128)
    c.optim.update(name="rmsprop", rmsprop_form="torch", b2=0.9, momentum=0.9, eps=0.0316)
    c.optim.update(base_lr=0.064, base_batch_size=1024)
    c.optim.update(schedule="exponential", decay_factor=0.973, decay_every_epochs=2.0)
    c.optim.update(weight_decay=1e-5)
    c.augment.update(auto_augment="autoaugment", random_erase=0.2)


VARIANTS = {"mobilenet_v2": v2, "mobilenet_v3_large": v3, "mobilenet_v3_small": v3}


def get_config(model: str = "mobilenet_v2") -> ConfigDict:
    recipe = pick_variant(model, VARIANTS)
    c = defaults(model)
    c.model.update(dropout=0.2, dtype="bfloat16")
    c.optim.update(decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    recipe(c)
    return c
