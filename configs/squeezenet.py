"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360) as its authors trained it in Caffe.

    python -m imagenet_jax.main --config=configs/squeezenet.py:squeezenet1_1

Source: solver.prototxt of github.com/forresti/SqueezeNet (170,000 steps). Accuracies are
those of the paper, and of torchvision's weights for a center crop of 224 from 256.

    batch   lr     schedule      momentum  weight decay          dropout  epochs
    512     0.04   linear to 0   0.9       2e-4, all parameters  0.5      67.94
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "squeezenet1_0": "SqueezeNet 1.0: 57.5 %, top-5 80.3 % (paper); 58.09 %, 80.42 % (torchvision)",
    "squeezenet1_1": "SqueezeNet 1.1, 2.4 times cheaper: 58.18 %, top-5 80.62 % (torchvision)",
}


def get_config(model: str = "squeezenet1_0") -> ConfigDict:
    pick_variant(model, VARIANTS)
    c = defaults(model)
    c.model.update(dropout=0.5, dtype="bfloat16")
    c.update(batch_size=512, epochs=67.94)
    c.optim.update(name="sgd", base_lr=0.04, base_batch_size=512, momentum=0.9)
    c.optim.update(schedule="polynomial", power=1.0, end_lr=0.0)
    c.optim.update(weight_decay=2e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
