"""Where a checkpoint looks, on images that the report shows: filters, feature maps, Grad-CAM."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.data.augment import normalize
from imagenet_jax.explain import layers, methods, pictures
from imagenet_jax.report.records import Explained, FeatureMaps, Sample
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.state import graph_of

_FILTERS = 64
_LAYERS, _CHANNELS = 4, 24  # of the feature maps


def explain(weights: Weights, samples: Sequence[Sample], predicted: np.ndarray) -> Explained:
    """Feature maps of the first of `samples`, and Grad-CAM of each for its class in `predicted`.

    Args:
      predicted: i[N], outputs of the head.
    """
    config = weights.config
    model = nnx.merge(graph_of(config.model), weights.tree["params"], weights.tree["batch_stats"])
    pixels = jnp.asarray(np.stack([sample.pixels for sample in samples]))
    images = normalize(pixels, config.data.mean, config.data.std, config.model.dtype)
    names = layers.conv_layers(model)
    kernel = np.asarray(layers.first_kernel(model), np.float32)
    tiles = [pictures.signed(tile) for tile in np.moveaxis(kernel, -1, 0)[:_FILTERS]]
    shown = [names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, _LAYERS).round())]
    heats = np.asarray(methods.grad_cam(model, images, jnp.asarray(predicted), names[-1]))
    return Explained(
        filters=np.stack(tiles),
        filters_layer=names[0],
        filters_count=kernel.shape[-1],
        subject=samples[0],
        feature_maps=tuple(_maps(model, images[:1], layer) for layer in shown),
        cam_layer=names[-1],
        cams=tuple(
            (sample, pictures.overlay(sample.pixels, heat))
            for sample, heat in zip(samples, heats, strict=True)
        ),
    )


def _maps(model: layers.Model, image: jnp.ndarray, layer: str) -> FeatureMaps:
    maps = np.asarray(layers.activations(model, image, layer), np.float32)[0]
    chosen = np.moveaxis(maps[..., pictures.strongest(maps, _CHANNELS)], -1, 0)
    low, high = chosen.min((1, 2), keepdims=True), chosen.max((1, 2), keepdims=True)
    scaled = (chosen - low) / np.where(high > low, high - low, 1)
    return FeatureMaps(layer, np.round(255 * scaled).astype(np.uint8), maps.shape[-1])
