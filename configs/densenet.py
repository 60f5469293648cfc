"""DenseNets (Huang et al. 2016, arXiv:1608.06993) by the recipe of their paper, section 4.2.

    python -m imagenet_jax.main --config=configs/densenet.py:densenet121

Accuracies are those of the authors (github.com/liuzhuang13/DenseNet) for a single center crop of
224; they also jitter colors. torchvision's weights are the authors', converted.

    batch   lr     schedule           momentum        weight decay          epochs
    256     0.1    x0.1 at 30 and 60  0.9, Nesterov   1e-4, all parameters  90

To save memory, --config.model.remat=blocks stores the features of each layer only once.
"""

from ml_collections import ConfigDict

from imagenet_jax.config import pick_variant
from imagenet_jax.config.fields import defaults

VARIANTS = {
    "densenet121": "DenseNet-121: 75.0 %",
    "densenet169": "DenseNet-169: 76.4 %",
    "densenet201": "DenseNet-201: 77.5 %",
    "densenet161": "DenseNet-161: 77.8 %",
}


def get_config(model: str = "densenet121") -> ConfigDict:
    pick_variant(model, VARIANTS)
    c = defaults(model)
    c.model.dtype = "bfloat16"
    c.update(batch_size=256, epochs=90.0)
    c.optim.update(name="sgd", base_lr=0.1, momentum=0.9, nesterov=True)
    c.optim.update(schedule="step", milestones=(30.0, 60.0), decay_factor=0.1)
    c.optim.update(weight_decay=1e-4, decay_bias_and_norm=True)
    c.augment.update(image_size=224)
    c.eval.update(resize=256, image_size=224)
    return c
