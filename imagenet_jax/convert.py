# PYTHON_ARGCOMPLETE_OK
"""Convert weights to a .safetensors file that imagenet_jax, torchvision and timm read.

  python -m imagenet_jax.convert --from=resnet50.pth --to=resnet50.safetensors
  python -m imagenet_jax.convert --from=runs/resnet50 --to=resnet50.safetensors --checkpoint=best
  python -m imagenet_jax.convert --from=runs/resnet50 --to=resnet50.safetensors --average=3
  python -m imagenet_jax.convert --from=torchvision/resnet50.v2 --to=resnet50.safetensors

The first command reads a state dict with the names of torchvision, timm, transformers or
mmpretrain, from a .safetensors file or a file of torch.save, which needs torch. No code in a file
is run. The second reads a workdir, and uses its EMA weights if the run keeps them. The third uses
the mean of the last three checkpoints, or of the best three with --checkpoint=best. The result has
torchvision's keys and layouts in float32 and, if they are known, the class names. Every key and
shape is checked against the model. main, eval, predict and explain read it with --weights, and so
does torch:

  model.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.progress import announce
from imagenet_jax.weights import catalog


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.convert", __doc__)
    parser.add_argument(
        "--from", required=True, dest="source", metavar="FILE|DIR|NAME",
        help="a state dict, the workdir of a training run, or published weights that "
        "python -m imagenet_jax.weights lists",
    )  # fmt: skip
    parser.add_argument(
        "--to", required=True, dest="target", metavar="FILE", help="a .safetensors file"
    )
    parser.add_argument(
        "--model", default="", metavar="NAME",
        help="expected model, such as resnet50 (default: any model, identified by the keys)",
    )  # fmt: skip
    cli.add_weights_key(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|STEP",
        help="checkpoint of a workdir (default: latest)",
    )
    parser.add_argument(
        "--average", type=int, default=1, metavar="N",
        help="mean of the N latest or best checkpoints of a workdir (default: 1)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    source, target = catalog.locate(args.source), expand_user(args.target)
    if args.checkpoint and not source.is_dir():
        raise UserError(f"--checkpoint needs a workdir, and {source} is not a folder")
    if args.average < 1 or (args.average > 1 and not source.is_dir()):
        raise UserError(f"--average={args.average} must be 1 or more, and above 1 needs a workdir")
    if args.weights_key and source.is_dir():
        raise UserError(f"--weights_key goes with a file, and {source} is a folder")

    with announce(f"converting {source}"):
        from imagenet_jax.training.state import count_parameters
        from imagenet_jax.weights import state_dicts, weight_file

        if source.is_dir():
            checkpoint = args.checkpoint or "latest"
            config, trees, names = _read_workdir(source, args.model, checkpoint, args.average)
        else:
            config, trees, names = _read_file(source, args.model, args.weights_key or "")
        params, batch_stats = trees
        weight_file.save(state_dicts.to_torch(params, batch_stats, config), target, names)
    width = "" if config.width == 1 else f", width {config.width:g}"
    print(
        f"{target}: {config.name}{width}, {config.num_classes:,} classes, "
        f"{count_parameters(params):,} parameters"
    )
    return 0


def _read_workdir(source: Path, name: str, checkpoint: str, average: int) -> tuple:
    """Return (config.model, (params, batch_stats), class names) of a workdir."""
    import jax

    from imagenet_jax.training.load_weights import load_run_weights

    weights = load_run_weights(source, checkpoint, average=average)
    config = weights.config.model
    if name and name != config.name:
        raise UserError(f"--model={name}, but {weights.origin} is of {config.name}")
    trees = jax.device_get((weights.tree["params"], weights.tree["batch_stats"]))
    return config, trees, weights.class_names


def _read_file(source: Path, name: str, key: str) -> tuple:
    """Return (config.model, (params, batch_stats), class names) of a weights file."""
    from imagenet_jax.config.fields import defaults
    from imagenet_jax.weights import state_dicts, weight_file

    origin = f"weights file {source}"
    file = weight_file.read(source, key)
    if file.note:
        print(file.note)
    fields = state_dicts.identify(file.arrays, name, origin=origin)
    if not fields["num_classes"]:
        raise UserError(f"{origin} holds {state_dicts.describe(fields)}; {state_dicts.HEADLESS}")
    config = defaults(fields["name"]).model
    config.update(fields)
    trees = state_dicts.from_torch(file.arrays, config, origin=origin)
    return config, trees, weight_file.load_class_names(source)


if __name__ == "__main__":
    cli.run(main)
