"""BiT-S R50x1 (Kolesnikov et al. 2020, arXiv:1912.11370) on ImageNet.

This is a ResNet v2 with group norm and weight standardization instead of batch norm. Sources: the
paper, on pre-training of BiT-S; github.com/google-research/big_vision, bit_i1k.py, for the range of
pixel values and for weight decay of kernels only. Published top-1: 76.0 % (from the paper's
comparison of norms for ResNet-50 at batch size 4,096: group norm with weight standardization).
`--config.model.name=bit_r101x1` is a larger model.

    batch   lr             schedule                    warm-up        momentum  weight decay  epochs
    4096    0.03 per 256   x0.1 at 30, 60 and 80       5,000 steps    0.9       1e-4          90
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("bit_r50x1")
    c.model.dtype = "bfloat16"
    c.update(batch_size=4096, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.03, base_batch_size=256, momentum=0.9)
    c.optim.update(schedule="step", milestones=(30.0, 60.0, 80.0), decay_factor=0.1)
    c.optim.update(warmup_epochs=5000 * 4096 / 1_281_167)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=False)
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
