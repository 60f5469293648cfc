"""Compiled bfloat16 networks stay near float32: guards against faults of a compiler version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import USUAL_COMPILATION

from imagenet_jax.config.fields import defaults
from imagenet_jax.runtime import xla


@pytest.mark.parametrize(
    ("name", "side", "train"),
    [
        ("resnet18", 64, False),
        ("vgg11_bn", 64, True),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in [
                ("resnet18", 64, True),
                ("vgg11_bn", 64, False),
                ("resnet50", 224, False),
                ("resnet50", 224, True),
            ]
        ),
    ],
)
def test_compiled_bfloat16_is_near_float32(filled, name, side, train):
    config = defaults(name).model
    config.num_classes = 10
    config.width = 1.0 if name == "resnet50" else 0.25
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, side, side, 3)), jnp.float32)

    def logits(dtype):
        config.dtype = dtype

        model = filled(config)

        def run(model, images):
            if name.startswith("vgg"):
                model.dropout.rate = 0.0
            return model(images.astype(dtype), train=train)

        compiled = jax.jit(run, compiler_options=(xla.options() or {}) | USUAL_COMPILATION)
        return np.asarray(compiled(model, images))

    want, got = logits("float32"), logits("bfloat16")
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() < 0.15 * np.abs(want).max()
