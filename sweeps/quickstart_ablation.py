"""Do ImageNet's crops and mirroring suit digits? 2 x 3 settings of the quickstart, 3 seeds.

python -m imagenet_jax.sweep --sweep=sweeps/quickstart_ablation.py --jobs=2 --out=runs/ablation
python -m imagenet_jax.sweep --table --out=runs/ablation --plot=docs/ablation.png
"""

from imagenet_jax.sweep.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        base={
            "epochs": 8.0,
            "ema.decay": 0.95,  # 0.98 averages over too many steps for half the epochs
            # The scans have 8x8 pixels: 16x16 loses nothing and is four times as fast.
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
