"""Train a model.

  python -m imagenet_jax.main --config=configs/resnet50.py --workdir=runs/resnet50

Run the same command again and it continues from the last checkpoint, in mid-epoch, on the same
samples. Any field of the config can be set on the command line; imagenet_jax/defaults.py documents
them all:

  --config.batch_size=1024 --config.data.path=/data/imagenet --config.optim.nesterov=true

The workdir gets config.json, provenance.json, metrics.jsonl, tensorboard/ and checkpoints/.
SIGTERM and ctrl-C finish the step, save and exit with 143 or 130; a second one exits at once.
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli


def main(argv: Sequence[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.parser("imagenet_jax.main", __doc__)
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]",
        help="a Python file with get_config(arg=''); ARG chooses a variant",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="where the run is written, and continued"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="start from these: short for --config.init.weights=FILE"
    )
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set one field of the config")
    args = parser.parse_args(argv)
    if args.weights is not None:
        overrides.append(("init.weights", args.weights))

    from imagenet_jax import config as config_io  # jax is imported after --help was answered
    from imagenet_jax.training.loop import train

    return train(config_io.load(args.config, overrides), Path(args.workdir).expanduser())


if __name__ == "__main__":
    cli.run(main)
