"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842) by the recipe of its replication in Caffe.

    python -m imagenet_jax.main --config=configs/googlenet.py

Source: quick_solver.prototxt and readme.md of bvlc_googlenet, github.com/BVLC/caffe (2,400,000
steps); the dropout rates are from memory. It reaches 68.7 %, top-5 88.9 %, for a center crop of
224, without batch norm and with random crops of fixed size; this config has the crops of the paper.
torchvision's weights come from TensorFlow, without a recipe: 69.78 %, top-5 89.53 %, for a crop of
224 from 256. They expect data.mean = data.std = (0.5, 0.5, 0.5), as torchvision's
transform_input=True does.

    batch   lr     schedule         momentum  weight decay   dropout            epochs
    32      0.01   square root      0.9       2e-4, kernels  0.4; heads: 0.7    59.94

The losses of the two auxiliary heads have the factor 0.3.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults("googlenet")
    c.model.update(aux_weight=0.3, dropout=0.4, aux_dropout=0.7, dtype="bfloat16")
    c.update(batch_size=32, epochs=59.94)
    c.optim.update(name="sgd", base_lr=0.01, base_batch_size=32, momentum=0.9)
    c.optim.update(schedule="polynomial", power=0.5, end_lr=0.0)
    c.optim.update(weight_decay=2e-4, decay_bias_and_norm=False)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
