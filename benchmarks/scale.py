"""Memory and communication of the train step by number of devices.

  python -m benchmarks.scale --config=configs/resnet50.py --devices=8,64

Nothing is run: the step is compiled for N CPU devices, in a separate process for each N, and its
memory and collectives are read from the program. Use as many images per device (--images) as in a
real run: with few, XLA communicates activations instead of parameters. On CPUs it also uses an
all-reduce where accelerators get a reduce-scatter.
"""

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli

_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"(f64|f32|bf16|s32|u32|u8|pred)\[([\d,]*)\]")
_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1}


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Return {kind: (number, bytes of the results per device)} of an optimized HLO program."""
    found: dict[str, tuple[int, int]] = {}
    for shapes, kind in _COLLECTIVE.findall(program):
        size = sum(
            _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
            for dtype, dims in _SHAPE.findall(shapes)
        )
        count, total = found.get(kind, (0, 0))
        found[kind] = count + 1, total + size
    return found


def compiled_here(config: Any) -> dict[str, Any]:
    """Return the figures of the step of `config`, compiled for the devices of this process."""
    import jax

    from imagenet_jax.debug.cost import abstract_batch, make_bare_step

    bare = make_bare_step(config)
    compiled = bare.step.lower(bare.abstract, abstract_batch(config, bare.mesh)).compile()
    program = compiled.as_text() or ""
    state = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(bare.abstract)
    )
    memory = compiled.memory_analysis()
    row = {
        "devices": bare.mesh.size,
        "fsdp": config.mesh.fsdp,
        "state_mb": state / 1e6,
        "temporary_mb": getattr(memory, "temp_size_in_bytes", 0) / 1e6,
    }
    return row | {
        f"{kind} ({count})": size / 1e6 for kind, (count, size) in collectives(program).items()
    }


def main(argv: Any) -> None:
    argv, overrides = cli.split_overrides(argv)
    parser = make_parser(__doc__, "configs/resnet50.py")
    parser.add_argument("--devices", default="8,64", metavar="N,N,...")
    parser.add_argument("--fsdp", default="1,8", metavar="N,N,...")
    parser.add_argument("--images", type=int, default=32, help="per device")
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
