# PYTHON_ARGCOMPLETE_OK
"""Turn weights into a .safetensors file that imagenet_jax, torchvision and timm read.

  python -m imagenet_jax.convert --from=resnet50.pth --to=resnet50.safetensors
  python -m imagenet_jax.convert --from=runs/resnet50 --to=resnet50.safetensors --checkpoint=best

The first reads a state dict with the names of torchvision, timm, transformers or mmpretrain:
.safetensors, or what torch.save writes, which needs torch. No code in a file is run. The second
reads a workdir, and takes its EMA weights if the run keeps them. The result has torchvision's keys
and layouts in float32 and, from a workdir, the class names. Every key and shape is checked against
the model. --weights of main, eval, predict and explain takes it, and so does torch:

  model.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))
"""

from collections.abc import Sequence

from imagenet_jax import cli
from imagenet_jax.errors import UserError, expand_user


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.convert", __doc__)
    parser.add_argument(
        "--from", required=True, dest="source", metavar="FILE|DIR",
        help="a state dict, or the workdir of a training run",
    )  # fmt: skip
    parser.add_argument(
        "--to", required=True, dest="target", metavar="FILE", help="a .safetensors file"
    )
    parser.add_argument(
        "--model", default="", metavar="NAME",
        help="what it must be, such as resnet50 (default: found out from the keys)",
    )  # fmt: skip
    cli.add_weights_key(parser)
    parser.add_argument(
        "--checkpoint", metavar="latest|best|STEP", help="of a workdir (default: latest)"
    )
    args = parser.parse_args(argv)
    source = expand_user(args.source)
    if args.checkpoint and not source.is_dir():
        raise UserError(f"--checkpoint goes with a workdir, and {source} is none")
    if args.weights_key and source.is_dir():
        raise UserError(f"--weights_key goes with a file, and {source} is a folder")

    from imagenet_jax.training.conversion import convert

    target = expand_user(args.target)
    checkpoint, key = args.checkpoint or "latest", args.weights_key or ""
    print(convert(source, target, args.model, checkpoint, key))
    return 0


if __name__ == "__main__":
    cli.run(main)
