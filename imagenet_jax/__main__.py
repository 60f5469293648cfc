# PYTHON_ARGCOMPLETE_OK
"""List the commands, models and configs.

  python -m imagenet_jax              # the commands
  python -m imagenet_jax --models     # names for config.model.name
  python -m imagenet_jax --configs    # files and variants for --config

Each command prints its flags with --help, and the config fields with --help_config.

To complete flags with the tab key in bash and zsh, run this once and open a new shell:

  activate-global-python-argcomplete --user
"""

import ast
from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli

_COMMANDS = {
    "Train and use models": ("main", "eval", "predict", "explain", "convert", "weights"),
    "Look at data": ("prepare", "doctor", "data.bench"),
    "Compare and share runs": ("report", "sweep", "publish", "reproduce"),
}


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax", __doc__)
    parser.add_argument("--models", action="store_true", help="list the models")
    parser.add_argument("--configs", action="store_true", help="list the configs in configs/")
    args = parser.parse_args(argv)
    if args.models:
        from imagenet_jax import models

        print("\n".join(models.names()))
    if args.configs:
        from imagenet_jax.config.python_files import list_configs

        configs = list_configs()
        width = max(map(len, configs), default=0)
        print("\n".join(f"{spec:<{width}}  {text}" for spec, text in configs.items()))
    if not args.models and not args.configs:
        for group, commands in _COMMANDS.items():
            print(f"{group}:")
            for command in commands:
                print(f"  python -m imagenet_jax.{command:<11} {_summary(command)}")
        print("\nEach takes --help. Models: --models, configs: --configs, more: --help.")
    return 0


def _summary(command: str) -> str:
    """Return the first line of a command's docstring, without importing it."""
    path = Path(__file__).parent / command.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
