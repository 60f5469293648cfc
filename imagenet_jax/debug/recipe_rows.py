"""The table of `reporting.recipe`, from a config and what is known of its data."""

import jax
from ml_collections import ConfigDict

from imagenet_jax.debug.recipe import recipe_rows
from imagenet_jax.training import optim
from imagenet_jax.training.state import abstract_params, count_parameters


def recipe_of(config: ConfigDict, images: int | None, steps: int | None) -> list[tuple[str, str]]:
    """(name, value) of what a paper's table states; nothing is computed on a device.

    Args:
      images: of the training split; None where the data is not at hand.
      steps: of the whole run; None where nobody knows.
    """
    # Shapes alone: this machine may have other devices than the run's.
    params = abstract_params(config.model)
    decayed = params
    if not config.optim.decay_bias_and_norm:
        mask = jax.tree.leaves(optim.decay_mask(params))
        decayed = [p for p, kept in zip(jax.tree.leaves(params), mask, strict=True) if kept]
    return recipe_rows(
        config,
        images=images,
        steps=steps,
        peak_lr=optim.peak_learning_rate(config.optim, config.batch_size),
        parameters=count_parameters(params),
        decayed=count_parameters(decayed),
    )
