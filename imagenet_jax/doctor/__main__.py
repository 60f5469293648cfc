# PYTHON_ARGCOMPLETE_OK
"""Check every image of a data set and report problems, without changing anything.

  python -m imagenet_jax.doctor /data/imagenet2012/5.1.0
  python -m imagenet_jax.doctor /images --json=report.json

DATA is a tfds directory of ArrayRecord files, or a folder in one of the layouts that docs/data.md
lists; the first line names the layout. A table shows counts, a histogram of images per class, sizes
and formats for each split. It is followed by the findings and the files that are left out. The
fingerprint depends only on the images and their classes, so it is the same however the data is
stored. A data set that is called imagenet2012, or has its classes, must have 1,281,167 + 50,000
images in 1,000 classes. Exits with 1 if there are errors.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from imagenet_jax import cli
from imagenet_jax.doctor import ERRORS, describe_kinds
from imagenet_jax.errors import UserError, expand_user, writing
from imagenet_jax.files import dump_json, write_json


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("imagenet_jax.doctor", f"{__doc__}\n{describe_kinds()}")
    parser.add_argument("data", metavar="DATA", help="folder of the data set")
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-",
        help="write all findings and counts as JSON; without FILE, print them instead of the table",
    )  # fmt: skip
    parser.add_argument(
        "--allow", metavar="KIND", action="append", default=[],
        help="count this kind of error as a warning; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N", default=os.cpu_count(), help="processes (default: all)"
    )
    args = parser.parse_args(argv)
    for kind in args.allow:
        if kind not in ERRORS:
            raise UserError(f"--allow={kind} is not a kind of error; they are {', '.join(ERRORS)}")
    if args.workers < 1:
        raise UserError(f"--workers={args.workers}: give at least 1")

    from imagenet_jax.doctor.diagnosis import diagnose, print_diagnosis

    quiet = args.json == "-"
    diagnosis = diagnose(expand_user(args.data), args.workers, args.allow, quiet=quiet)
    if quiet:
        print(dump_json(diagnosis.as_json(), indent=2))
    else:
        print_diagnosis(diagnosis)
        if args.json:
            with writing(f"--json={args.json}"):
                write_json(Path(args.json), diagnosis.as_json())
    return 1 if diagnosis.errors else 0


if __name__ == "__main__":
    cli.run(main, lost_output="ends")
