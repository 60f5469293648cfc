"""What weights look at in images: Grad-CAM, occlusion, guided backpropagation, filters, maps."""

import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from imagenet_jax.classify.images import predict_images
from imagenet_jax.classify.page import Failure
from imagenet_jax.data.augment import normalize
from imagenet_jax.data.loose_images import LooseImage, find_images
from imagenet_jax.errors import UserError
from imagenet_jax.explain import gradcam, guided, layers, occlusion, pictures
from imagenet_jax.explain.sheet import Explanation, Picture, write
from imagenet_jax.markup import printable
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.state import graph_of

_SIDE = 224  # pixels at least of a picture: smaller images are enlarged


@dataclasses.dataclass(frozen=True)
class Request:
    """What to explain, and how.

    Attributes:
      methods: of "gradcam", "occlusion", "guided", "features" and "filters".
      layer: of Grad-CAM and feature maps, a name of `layers.conv_layers`; "": the last.
      class_name: a name or an index; "": each image's likeliest class.
      square: the side of occlusion's square in pixels; 0: a fifth of the image's.
    """

    methods: Sequence[str]
    layer: str = ""
    class_name: str = ""
    square: int = 0


def model_of(weights: Weights) -> layers.Model:
    """The model with its weights."""
    graph = graph_of(weights.config.model)
    return nnx.merge(graph, weights.tree["params"], weights.tree["batch_stats"])


def print_layers(weights: Weights) -> int:
    """The names that --layer takes, from input to output, one a line; returns exit code 0."""
    print("\n".join(layers.conv_layers(model_of(weights))))
    return 0


def explain_files(weights: Weights, names: Sequence[str], request: Request, out: Path) -> int:
    """Write the pictures of files and folders, print what is written, and, on standard error, what
    is wrong.

    Returns the exit code: 1 where anything failed. Raises the UserErrors of `explain`, and one
    where `out` cannot be written.
    """
    images, failures = find_images(names)
    explanations = []
    for result in explain(weights, images, request) if images else ():
        if isinstance(result, Failure):
            failures.append(result.reason)
        else:
            explanations.append(result)
    of_model = [filters(weights)] if "filters" in request.methods else []
    for failure in failures:
        print(f"error: {printable(failure)}", file=sys.stderr)
    if explanations or not names:
        for path in write(out, explanations, of_model):
            print(path)
    return 1 if failures else 0


def filters(weights: Weights) -> Picture:
    """The first convolution's filters."""
    model = model_of(weights)
    title = f"filters of {layers.conv_layers(model)[0]}"
    return Picture("filters", title, pictures.filters(np.asarray(layers.first_kernel(model))))


def explain(
    weights: Weights, images: Sequence[LooseImage], request: Request
) -> Iterator[Explanation | Failure]:
    """An Explanation of each image in order, and a Failure, perhaps earlier, of each bad one.

    Images are decoded and classes predicted as by `predict_images`; explained is the image itself,
    not, under config.eval.flip, its mirror image.

    Raises UserError for an unknown layer or class, or a square larger than the images.
    """
    model, side = model_of(weights), weights.config.eval.image_size
    layer = request.layer or layers.conv_layers(model)[-1]
    layers.check(model, layer)
    classes = weights.config.model.num_classes
    wanted = _label_of(request.class_name, weights.class_names, classes)
    size = request.square or occlusion.default_size(side)
    if "occlusion" in request.methods:  # before any image is decoded
        occlusion.corners(side, size, occlusion.default_stride(size))
    for result in predict_images(weights, images, top=classes):
        if isinstance(result, Failure):
            yield result
            continue
        place = 0 if wanted is None else int(np.flatnonzero(result.labels == wanted)[0])
        picture = _Painter(weights, model, result.pixels, int(result.labels[place]), layer, size)
        shown = tuple(picture(method) for method in request.methods if method != "filters")
        name, probability = result.classes[place], float(result.probabilities[place])
        yield Explanation(result.name, picture.large, name, probability, shown)


class _Painter:
    """Makes one image's picture by a method."""

    def __init__(
        self,
        weights: Weights,
        model: layers.Model,
        pixels: np.ndarray,
        label: int,
        layer: str,
        square: int,
    ):
        data, dtype = weights.config.data, weights.config.model.dtype
        self.images = normalize(jnp.asarray(pixels[None]), data.mean, data.std, dtype)
        self.zoom = -(-_SIDE // len(pixels))
        self.large = pixels.repeat(self.zoom, 0).repeat(self.zoom, 1)
        self.model, self.labels, self.layer = model, np.array([label]), layer
        self.square = square

    def __call__(self, method: str) -> Picture:
        return {
            "gradcam": self._gradcam,
            "occlusion": self._occlusion,
            "guided": self._guided,
            "features": self._features,
        }[method]()

    def _gradcam(self) -> Picture:
        heat = gradcam.grad_cam(self.model, self.images, self.labels, self.layer)[0]
        drawn = pictures.overlay(self.large, _enlarge(heat, self.zoom))
        return Picture("gradcam", f"Grad-CAM of {self.layer}", drawn)

    def _occlusion(self) -> Picture:
        size, stride = self.square, occlusion.default_stride(self.square)
        [heat] = occlusion.occlusion(self.model, self.images, self.labels, size=size, stride=stride)
        drawn = pictures.signed_overlay(self.large, _enlarge(heat, self.zoom))
        title = f"occlusion, {size}x{size}: {-heat.max():+.1%} to {-heat.min():+.1%}"
        return Picture("occlusion", title, drawn)

    def _guided(self) -> Picture:
        [gradient] = guided.guided_backpropagation(self.model, self.images, self.labels)
        drawn = pictures.signed(np.asarray(gradient))
        drawn = drawn.repeat(self.zoom, 0).repeat(self.zoom, 1)
        return Picture("guided", "guided backpropagation", drawn)

    def _features(self) -> Picture:
        maps = np.asarray(layers.activations(self.model, self.images, self.layer)[0], np.float32)
        shown, channels = len(pictures.strongest(maps)), maps.shape[-1]
        which = f"{channels}" if shown == channels else f"{shown} of {channels}"
        title = f"{self.layer}: {which} channels"
        return Picture("features", title, pictures.feature_maps(maps))


def _enlarge(heat: layers.Array, zoom: int) -> np.ndarray:
    """f32[H, W] -> f32[zoom * H, zoom * W], bilinearly."""
    image = Image.fromarray(np.asarray(heat, np.float32))
    size = (image.width * zoom, image.height * zoom)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _label_of(text: str, names: Sequence[str], classes: int) -> int | None:
    """The label that `text` names; a class whose name is a number goes by that name.

    Raises UserError where there is none, or several.
    """
    if not text:
        return None
    found = [i for i, name in enumerate(names) if name.lower() == text.lower()]
    if len(found) > 1:
        indices = ", ".join(map(str, found))
        raise UserError(f"--class={text} is the name of classes {indices}; give the index")
    if found:
        return found[0]
    if text.isdecimal() and int(text) < classes:
        return int(text)
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"--class={text}: give a class's name or its index, 0 to {classes - 1}{hint}")
