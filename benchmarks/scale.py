"""Print the memory and communication of the train step by number of devices.

  python -m benchmarks.scale --config=configs/resnet50.py --devices=8,64

The step is compiled for N CPU devices, in a separate process for each N, but not run: its memory
and collectives are read from the program. Use as many images per device (--images) as in a real
run, because with few images XLA communicates activations instead of parameters. On CPUs, XLA uses
an all-reduce where accelerators use a reduce-scatter.
"""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli


def compiled_here(config: Any) -> dict[str, Any]:
    """Return the figures of the step of `config`, compiled for the devices of this process."""
    from imagenet_jax.debug.compiled import read_cost
    from imagenet_jax.debug.cost import (
        abstract_batch,
        device_bytes,
        make_bare_step,
        temporary_bytes,
    )

    bare = make_bare_step(config)
    compiled = bare.step.lower(bare.abstract, abstract_batch(config, bare.mesh)).compile()
    program = read_cost(compiled.as_text() or "")
    row = {
        "devices": bare.mesh.size,
        "fsdp": config.mesh.fsdp,
        "state_mb": device_bytes(bare.abstract) / 1e6,
        "temporary_mb": temporary_bytes(compiled) / 1e6,
    }
    return row | {
        f"{kind} ({count})": program.collective_bytes[kind] / 1e6
        for kind, count in program.collectives.items()
    }


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/resnet50.py")
    parser.add_argument("--devices", default="8,64", metavar="N,N,...")
    parser.add_argument("--fsdp", default="1,8", metavar="N,N,...")
    parser.add_argument("--images", type=int, default=32, help="images per device")
    parser.add_argument("--here", action="store_true", help="compile for this process's devices")
    args = parser.parse_args(argv)
    if args.here:
        from imagenet_jax import config as config_io

        batch_size = str(int(args.devices) * args.images)
        fields = [("batch_size", batch_size), ("mesh.fsdp", args.fsdp), ("model.dtype", "float32")]
        print_result(compiled_here(config_io.load(args.config, [*fields, *overrides])), True)
        return
    rows = []
    for devices in args.devices.split(","):
        for fsdp in args.fsdp.split(","):
            flags = f"--xla_force_host_platform_device_count={devices}"
            done = subprocess.run(
                [
                    sys.executable, "-m", "benchmarks.scale", "--here", f"--config={args.config}",
                    f"--devices={devices}", f"--fsdp={fsdp}", f"--images={args.images}",
                    *(f"--config.{field}={text}" for field, text in overrides),
                ],
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            if not args.json:
                print(", ".join(f"{k}: {v:,.1f}" for k, v in rows[-1].items()), flush=True)
    if args.json:
        print_result({"rows": rows}, True)


if __name__ == "__main__":
    cli.run(main)
