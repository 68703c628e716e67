"""Check every image of a data set: `python tools/check_dataset.py FOLDER --gt-size 256 --scale 4`.

Each image is decoded to its end, in parallel. Every bad one is listed with what is wrong with it: it cannot be read, is
empty, no image, truncated, of another depth than 8 or 16 bits, smaller than --gt-size, no multiple of --scale, or has
the same name as another one but for the ending. With --lq the images are paired by their names, and the sizes of a pair
must differ by --scale. Counted, and no fault, are greyscale images, those with alpha, and those of 16 bits. The exit
status is 0 if all are good, 1 if some are bad, and 2 if a folder is missing or empty.
"""

from __future__ import annotations

import argparse
import os

from bsr_plugins.data.check_images import CheckRequest, check_images
from bsr_plugins.options.command_line import run_tool

BAD_IMAGES = 1


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=first.partition(":")[0] + ".", epilog=rest)
    parser.add_argument(
        "folder", nargs="+", help="folder of images, searched with its sub-folders, or an LMDB (a name ending in .lmdb)"
    )
    parser.add_argument("--gt-size", type=int, metavar="N", help="least number of pixels a side")
    parser.add_argument("--scale", type=int, metavar="S", help="both sides are to be multiples of it")
    parser.add_argument("--lq", metavar="FOLDER", help="folder or LMDB of the LQ images that belong to the one folder")
    parser.add_argument(
        "--lq-name", default="{}", metavar="NAME", help="name of an LQ image, {} for that of its GT image: {}x4"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one for every CPU core")
    return parser.parse_args()


def check() -> int:
    """Check one data set."""
    args = parse_arguments()
    request = CheckRequest(
        roots=tuple(args.folder), lq=args.lq, lq_name=args.lq_name, gt_size=args.gt_size, scale=args.scale
    )
    report = check_images(request, args.processes, progress=True)
    for line in report.lines():
        print(line)
    return BAD_IMAGES if report.faults else 0


def main() -> int:
    """Check one data set, or say why it cannot be."""
    return run_tool(check, "interrupted: not all images were checked")


if __name__ == "__main__":
    raise SystemExit(main())
