"""Measure the speed of torch's train step of a torchvision model, for comparison with ours.

  pip install torch torchvision
  python -m benchmarks.torch_step --model=resnet50 --compile

The step has the fastest options on one GPU: bfloat16 autocast, channels_last, fused SGD with
momentum and, with --compile, torch.compile. As in our step, images are uint8 on the device and
normalized there.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.common import make_parser, print_result
from imagenet_jax import cli


def make_step(name: str, batch_size: int, image_size: int, compile: bool) -> Callable[[], None]:
    """Return a function that runs one step, on a random batch."""
    import torch
    import torchvision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torchvision.models.get_model(name, num_classes=1000)
    model = model.to(device, memory_format=torch.channels_last)
    forward = torch.compile(model) if compile else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
    )
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch_size,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            logits = forward((images.float() - 118.0) / 57.0)
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()

    return step


def time_steps(step: Callable[[], None], repeats: int, steps: int) -> list[float]:
    """Return the seconds per step of `repeats` series of `steps`, after five untimed steps."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(5):
        step()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / steps)
    return seconds


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="resnet50", help="torchvision's name of the model")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--compile", action="store_true", help="compile the model")
    parser.add_argument("--steps", type=int, default=20, help="steps per measurement")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of measurements; the median is reported"
    )
    args = parser.parse_args(argv)
    step = make_step(args.model, args.batch_size, args.image_size, args.compile)
    seconds = statistics.median(time_steps(step, args.repeats, args.steps))
    result = {
        "model": args.model,
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "compile": args.compile,
        "step_ms": 1e3 * seconds,
        "images_per_second": args.batch_size / seconds,
    }
    print_result(result, args.json)


if __name__ == "__main__":
    cli.run(main)
