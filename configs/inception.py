"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) by the recipe of its paper.

    python -m imagenet_jax.main --config=configs/inception.py

Source: section 8 of the paper, and TF-slim's inception_v3 for weight decay and the weight of the
auxiliary loss; all from memory. The paper's batch is of 50 asynchronous replicas of 32 images; here
they make one synchronous batch. 78.8 %, top-5 94.4 % for a single crop (README of TensorFlow's
research/inception). torchvision's weights are ported from TensorFlow, not trained: 77.29 %, 93.45 %
for a crop of 299 from 342. They expect data.mean = data.std = 0.5 (its transform_input=True).

    batch   lr      schedule           optimizer               weight decay          smoothing
    1,600   0.045   x0.94 / 2 epochs   RMSprop 0.9, eps 1.0    4e-5, kernels         0.1

    gradient norm at most 2, EMA 0.9999, dropout 0.2, auxiliary loss 0.4, 100 epochs
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("inception_v3")
    c.model.update(aux_weight=0.4, dropout=0.2, dtype="bfloat16")
    c.update(batch_size=1600, epochs=100.0)
    c.optim.update(name="rmsprop", base_lr=0.045, b2=0.9, momentum=0.0, eps=1.0)
    c.optim.update(schedule="exponential", decay_factor=0.94, decay_every_epochs=2.0)
    c.optim.update(base_batch_size=1600, grad_clip_norm=2.0)
    c.optim.update(weight_decay=4e-5, decay_bias_and_norm=False)
    c.loss.label_smoothing = 0.1
    c.ema.decay = 0.9999
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.update(image_size=299)
    c.eval.update(resize=342, image_size=299)
    return c
