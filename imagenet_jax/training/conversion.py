"""From whatever holds weights to a weights file that every other tool reads."""

from pathlib import Path

import jax

from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training.load_weights import of_workdir
from imagenet_jax.training.state import count_parameters
from imagenet_jax.weights import torch_names, weight_file
from imagenet_jax.weights.identify import HEADLESS, describe, identify


def convert(
    source: Path, target: Path, name: str = "", checkpoint: str = "latest", key: str = ""
) -> str:
    """Write the weights of a file or a workdir to `target`, a .safetensors file.

    What is written has torchvision's keys and layouts, all in float32, and the class names where
    they are known; each key and shape has been checked against the model.

    Args:
      name: of the model that the file must be of; "" finds it out.
      checkpoint: "latest", "best" or a step, of a workdir.
      key: the entry of a file that holds the state dict, as for `weight_file.read`.

    Returns:
      One line that says what was written, after a line on what was chosen, renamed or skipped, if
      anything was. Raises UserError where nothing was written.
    """
    note = ""
    if source.is_dir():
        weights = of_workdir(source, checkpoint)
        config, names = weights.config.model, weights.class_names
        if name and name != config.name:
            raise UserError(f"--model={name}, but {weights.origin} is of {config.name}")
        params, batch_stats = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    else:
        origin = f"weights file {source}"
        file = weight_file.read(source, key)
        note = f"{file.note}\n" if file.note else ""
        fields = identify(file.arrays, name, origin=origin)
        if not fields["num_classes"]:
            raise UserError(f"{origin} holds {describe(file.arrays)}; {HEADLESS}")
        config = defaults(fields["name"]).model
        config.update(fields)
        params, batch_stats = torch_names.from_torch(file.arrays, config, origin=origin)
        names = torch_names.load_class_names(source)
    torch_names.save(torch_names.to_torch(params, batch_stats, config), target, names)
    width = "" if config.width == 1 else f", width {config.width:g}"
    return (
        f"{note}{target}: {config.name}{width}, {config.num_classes:,} classes, "
        f"{count_parameters(params):,} parameters"
    )
