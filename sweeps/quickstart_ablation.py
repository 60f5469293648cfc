"""Do the crops and the mirroring of ImageNet suit digits? On the quickstart, 2 x 3 x 3 runs.

python -m imagenet_jax.sweep --sweep=sweeps/quickstart_ablation.py --jobs=2 --out=runs/ablation
python -m imagenet_jax.sweep --table --out=runs/ablation --plot=docs/ablation.png
"""

from imagenet_jax.sweep.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        base={
            "epochs": 8.0,
            "ema.decay": 0.95,  # the quickstart's 0.98 looks back too far for half of its epochs
            # The scans have 8x8 pixels: 16x16 lose nothing, and take a quarter of the time.
            "augment.image_size": 16,
            "eval.resize": 16,
            "eval.image_size": 16,
            "log.every_steps": 10,
            "log.tensorboard": False,
            "eval.every_epochs": 0.0,
            "checkpoint.every_epochs": 0.0,
        },
        grid={
            "augment.flip": (False, True),
            "augment.crop_scale": ((1.0, 1.0), (0.7, 1.0), (0.08, 1.0)),
        },
        seeds=3,
        baseline={"augment.flip": False, "augment.crop_scale": (0.7, 1.0)},  # as in the quickstart
    )
