"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) by the recipe of its paper, with momentum.

    python -m imagenet_jax.main --config=configs/inception.py

Source: section 8 of the paper, from memory; dropout and auxiliary head of TF-slim's inception_v3,
the weight of its loss and weight decay of TF-slim from memory. The paper trained its first models
with momentum and its best ones with RMSprop (decay 0.9, epsilon 1.0). Its 50 replicas with batches
of 32 are one batch here. No accuracy is published for this recipe. torchvision's weights come from
TensorFlow and have no recipe: 77.29 %, top-5 93.45 %, for a center crop of 299 from 342. They
expect data.mean = data.std = (0.5, 0.5, 0.5), which torchvision calls transform_input=True.

    batch   lr      schedule            momentum  weight decay   gradient norm  epochs
    1,600   0.045   x0.94 / 2 epochs    0.9       4e-5, kernels  at most 2      100

Label smoothing 0.1, dropout 0.2, EMA 0.9999. The loss of the auxiliary head counts 0.4. Training
with it needs images of 299x299; with --config.model.aux_weight=0, images of 75x75 are enough.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("inception_v3")
    c.model.update(aux_weight=0.4, dropout=0.2, dtype="bfloat16")
    c.update(batch_size=1600, epochs=100.0)
    c.optim.update(name="sgd", base_lr=0.045, base_batch_size=1600, momentum=0.9)
    every_second = tuple(map(float, range(2, 100, 2)))
    c.optim.update(schedule="step", milestones=every_second, decay_factor=0.94)
    c.optim.update(weight_decay=4e-5, decay_bias_and_norm=False, grad_clip_norm=2.0)
    c.loss.label_smoothing = 0.1
    c.ema.decay = 0.9999
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.update(image_size=299)
    c.eval.update(resize=342, image_size=299)
    return c
