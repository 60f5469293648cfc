"""Fine-tune pretrained weights on a folder of images, CLASS/*.jpg, of any size.

    python -m imagenet_jax.main --config=configs/transfer.py --workdir=runs/pets \
      --weights=resnet50.safetensors --config.data.path=/images/pets --config.model.num_classes=37
    python -m imagenet_jax.eval --workdir=runs/pets --by_class

A fifth of each class is held out, the same images in every run. For two epochs only the head is
trained, then all layers, the earlier ones more slowly. `:vgg16` or another name chooses the model.
The learning rate is in the middle of the range, 1e-4 to 0.1 at batch 256, that Kornblith et al.
2019 (arXiv:1805.08974) search for ImageNet models on other data: search it for yours.
"""

from ml_collections import ConfigDict

from imagenet_jax.config.fields import defaults


def get_config(model: str = "resnet50") -> ConfigDict:
    c = defaults(model)
    c.model.dtype = "bfloat16"
    c.update(batch_size=64, epochs=20.0)
    c.init.weights = f"{model}.safetensors"  # what `python -m imagenet_jax.convert` makes
    c.init.new_head = True  # even if the file has equally many classes: they are different ones
    c.data.update(source="folder", path="~/images", holdout=0.2)
    if model.startswith("efficientnet_lite"):  # what its authors' weights expect
        c.data.update(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    c.data.balance = "over"  # small classes are shown as often as large ones
    c.augment.crop_scale = (0.35, 1.0)  # a small data set, of objects that fill the picture
    c.loss.label_smoothing = 0.1
    c.optim.update(base_lr=0.01, schedule="cosine", warmup_epochs=1.0)
    c.optim.update(nesterov=True, decay_bias_and_norm=False)
    c.optim.update(freeze_epochs=2.0, layer_decay=0.7)
    c.eval.batch_size = 64
    c.checkpoint.every_epochs = 5.0
    c.log.every_steps = 10
    return c
