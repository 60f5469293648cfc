"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) by the recipe of its paper.

    python -m imagenet_jax.main --config=configs/inception.py

Sources: section 8 of the paper, from memory, with RMSprop, which trained its best models; the
momentum and form of RMSprop from research/inception/inception/inception_train.py in
github.com/tensorflow/models; dropout and auxiliary head from TF-slim's inception_v3; weight decay
and the factor of the auxiliary loss from TF-slim, from memory. The 50 replicas of the paper, with
32 images each, are one batch here. No accuracy is published for this recipe. torchvision's weights
come from TensorFlow, without a recipe: 77.29 %, top-5 93.45 %, for a center crop of 299 from 342.
They expect data.mean = data.std = (0.5, 0.5, 0.5), as torchvision's transform_input=True does.

    batch   lr      schedule            RMSprop                    weight decay   gradient norm
    1,600   0.045   x0.94 / 2 epochs    0.9, momentum 0.9, eps 1   4e-5, kernels  at most 2

100 epochs, label smoothing 0.1, dropout 0.2, EMA 0.9999. The loss of the auxiliary head has the
factor 0.4. Training with it needs images of 299x299; with --config.model.aux_weight=0, 75x75 is
enough.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("inception_v3")
    c.model.update(aux_weight=0.4, dropout=0.2, dtype="bfloat16")
    c.update(batch_size=1600, epochs=100.0)
    c.optim.update(name="rmsprop", b2=0.9, momentum=0.9, eps=1.0)
    c.optim.update(base_lr=0.045, base_batch_size=1600)
    c.optim.update(schedule="exponential", decay_factor=0.94, decay_every_epochs=2.0)
    c.optim.update(weight_decay=4e-5, decay_bias_and_norm=False, grad_clip_norm=2.0)
    c.loss.label_smoothing = 0.1
    c.ema.decay = 0.9999
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.update(image_size=299)
    c.eval.update(resize=342, image_size=299)
    return c
