"""Explains images: chooses the class, draws a picture for each method, and writes files."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from imagenet_jax.classify.images import Failure, Prediction, predict_images
from imagenet_jax.data.augment import normalize
from imagenet_jax.data.image_files import LooseImage, find_images
from imagenet_jax.errors import UserError, printable
from imagenet_jax.explain import methods, pictures
from imagenet_jax.explain.pictures import Explanation, Picture
from imagenet_jax.progress import announce, track
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.state import inference_graph

_MIN_SIDE = 224  # pixels; smaller images are enlarged


@dataclasses.dataclass(frozen=True)
class Request:
    """What to explain, and how.

    Attributes:
      methods: any of "gradcam", "occlusion", "guided", "features" and "filters".
      layer: layer for Grad-CAM and feature maps, one of `methods.conv_layers`; "": the last.
      class_name: name or index of the class; "": the most likely class of each image.
      square: side of the occluding square in pixels; 0: a fifth of the image's side.
    """

    methods: Sequence[str]
    layer: str = ""
    class_name: str = ""
    square: int = 0


def build_model(weights: Weights) -> methods.Model:
    """Return the model with its weights."""
    tree = weights.tree
    return nnx.merge(inference_graph(weights.config.model), tree["params"], tree["batch_stats"])


def normalize_pixels(weights: Weights, pixels: np.ndarray) -> jax.Array:
    """Return `pixels` u8[B, H, W, 3], normalized as the model expects."""
    data, dtype = weights.config.data, weights.config.model.dtype
    return normalize(jnp.asarray(pixels), data.mean, data.std, dtype)


def print_layers(weights: Weights) -> None:
    """Print the names that --layer accepts, from input to output, one per line."""
    print("\n".join(methods.conv_layers(build_model(weights))))


def explain_files(weights: Weights, names: Sequence[str], request: Request, out: Path) -> int:
    """Write the pictures for files and folders. Print the written files, and errors on stderr.

    `out` is a single sheet if it ends in .png, otherwise a folder.

    Returns the exit code: 1 if anything failed. Raises the UserErrors of `explain`, and UserError
    if `out` cannot be written.
    """
    images, failures = find_images(names)
    explanations, undecoded = explain(weights, images, request) if images else ([], [])
    of_model = [_draw_filters(weights)] if "filters" in request.methods else []
    failures += [failure.reason for failure in undecoded]
    for failure in failures:
        print(f"error: {printable(failure)}", file=sys.stderr)
    if explanations or not names:
        is_sheet = out.suffix.lower() == ".png"
        write = pictures.write_sheet if is_sheet else pictures.write_folder
        with announce(f"writing {out}"):
            paths = write(out, explanations, of_model)
        print(*paths, sep="\n")
    return 1 if failures else 0


def explain(
    weights: Weights, images: Sequence[LooseImage], request: Request
) -> tuple[list[Explanation], list[Failure]]:
    """Return the explanations of the images, in order, and the failures of bad images.

    Images are decoded and classified as in `predict_images`. With config.eval.flip, the class is
    predicted from the image and its mirror image, but only the image itself is explained.

    Raises UserError for an unknown layer or class, or a square larger than the images.
    """
    model, classes = build_model(weights), weights.config.model.num_classes
    layer = request.layer or methods.conv_layers(model)[-1]
    methods.check_layer(model, layer)
    label = _find_label(request.class_name, weights.class_names, classes)
    side = weights.config.eval.image_size
    square = request.square or methods.default_square(side)
    if "occlusion" in request.methods:  # fail before any image is decoded
        methods.square_starts(side, square, methods.default_stride(square))
    request = dataclasses.replace(request, layer=layer, square=square)

    def explain_one(prediction: Prediction) -> Explanation:
        place = 0 if label is None else int(np.flatnonzero(prediction.labels == label)[0])
        inputs = normalize_pixels(weights, prediction.pixels[None])
        enlarged = _enlarge(prediction.pixels, -(-_MIN_SIDE // len(prediction.pixels)))
        subject = _Subject(model, enlarged, inputs, prediction.labels[place : place + 1])
        return Explanation(
            prediction.name,
            enlarged,
            prediction.classes[place],
            float(prediction.probabilities[place]),
            tuple(_draw(m, subject, request) for m in request.methods if m != "filters"),
        )

    results = list(predict_images(weights, images, top=classes))
    good = [result for result in results if isinstance(result, Prediction)]
    with announce("compiling the explanations"):
        explanations = [explain_one(prediction) for prediction in good[:1]]
    rest = track(good[1:], "explaining images", len(good), already=1)
    explanations += [explain_one(prediction) for prediction in rest]
    return explanations, [result for result in results if isinstance(result, Failure)]


def _draw_filters(weights: Weights) -> Picture:
    model = build_model(weights)
    tiles = pictures.filter_tiles(np.asarray(methods.first_kernel(model), np.float32))
    title = f"filters of {methods.conv_layers(model)[0]}"
    return Picture("filters", title, pictures.grid(tiles, zoom=6))


class _Subject(NamedTuple):
    """An image to explain: u8[Z * H, Z * W, 3] enlarged pixels, f[1, H, W, 3] input, i[1] label."""

    model: methods.Model
    pixels: np.ndarray
    inputs: jax.Array
    label: np.ndarray


def _draw(method: str, subject: _Subject, request: Request) -> Picture:
    model, pixels, inputs, label = subject
    zoom = len(pixels) // inputs.shape[1]
    if method == "gradcam":
        [heat] = methods.grad_cam(model, inputs, label, request.layer)
        drawn = pictures.overlay(pixels, _enlarge_smoothly(heat, zoom))
        title = f"Grad-CAM of {request.layer}"
    elif method == "occlusion":
        square, stride = request.square, methods.default_stride(request.square)
        [heat] = methods.occlusion(model, inputs, label, square=square, stride=stride)
        drawn = pictures.signed_overlay(pixels, _enlarge_smoothly(heat, zoom))
        title = f"occlusion, {square}x{square}: {-heat.max():+.1%} to {-heat.min():+.1%}"
    elif method == "guided":
        [gradient] = methods.guided_backpropagation(model, inputs, label)
        drawn = _enlarge(pictures.signed(np.asarray(gradient)), zoom)
        title = "guided backpropagation"
    else:
        maps = np.asarray(methods.activations(model, inputs, request.layer)[0], np.float32)
        drawn = pictures.feature_maps(maps)
        shown, channels = len(pictures.strongest(maps)), maps.shape[-1]
        count = f"{channels}" if shown == channels else f"{shown} of {channels}"
        title = f"{request.layer}: {count} channels"
    return Picture(method, title, drawn)


def _enlarge(pixels: np.ndarray, zoom: int) -> np.ndarray:
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def _enlarge_smoothly(heat: jax.Array | np.ndarray, zoom: int) -> np.ndarray:
    """Return f32[H, W] enlarged bilinearly to f32[zoom * H, zoom * W]."""
    image = Image.fromarray(np.asarray(heat, np.float32))
    size = (image.width * zoom, image.height * zoom)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _find_label(text: str, names: Sequence[str], classes: int) -> int | None:
    """Return the label of the class with the name or index `text`, or None for "".

    Names take precedence. Raises UserError if there is no such class, or more than one.
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
