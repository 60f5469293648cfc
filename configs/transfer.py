"""Fine-tune pretrained weights on a folder of images, CLASS/*.jpg, of any size.

    python -m imagenet_jax.main --config=configs/transfer.py --workdir=runs/pets \
      --weights=resnet50.safetensors --config.data.path=/images/pets --config.model.num_classes=37
    python -m imagenet_jax.eval --workdir=runs/pets --by_class

A fifth of each class is held out, the same images in every run. For two epochs, only the head is
trained; then all layers are, with smaller learning rates for earlier layers. `:vgg16` chooses
another model. Tune the learning rate for your data: the default is in the middle of the range that
Kornblith et al. 2019 (arXiv:1805.08974) search, 1e-4 to 0.1 at batch size 256.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config(model: str = "resnet50") -> ConfigDict:
    c = defaults(model)
    c.model.dtype = "bfloat16"
    c.update(batch_size=64, epochs=20.0)
    c.init.weights = f"{model}.safetensors"  # written by `python -m imagenet_jax.convert`
    c.init.new_head = True  # even if the file has the same number of classes
    c.data.update(source="folder", path="~/images", holdout=0.2)
    if model.startswith("efficientnet_lite"):  # what its authors' weights expect
        c.data.update(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    c.data.balance = "over"  # small classes are shown as often as large ones
    c.augment.crop_scale = (0.35, 1.0)  # for small data sets whose objects fill the image
    c.loss.label_smoothing = 0.1
    c.optim.update(base_lr=0.01, schedule="cosine", warmup_epochs=1.0)
    c.optim.update(nesterov=True, decay_bias_and_norm=False)
    c.optim.update(freeze_epochs=2.0, layer_decay=0.7)
    c.eval.batch_size = 64
    c.checkpoint.every_epochs = 5.0
    c.log.every_steps = 10
    return c
