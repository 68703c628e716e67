"""Write a test set: LR images of a protocol, the HR images that they were made of, and a manifest.

`python tools/make_testset.py FOLDER --out Set5_align8 --protocol align8 --scale 4` writes Set5_align8/HR/*.png,
Set5_align8/LR_clean/X4/*.png, LR_blur/X4 … and manifest.json. The LR images are those that a `PairedDegradationDataset`
with this protocol and seed makes while it is read; any other tool can read the folders, BasicSR's `PairedImageDataset`
for one. `demo` in place of a folder means the photographs of scikit-image. What was interrupted goes on with the same
command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bsr_plugins.data.testset_writer import SetRequest, make_test_set
from bsr_plugins.degradations import PROTOCOLS
from bsr_plugins.options.command_line import run_tool


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="+", help="folder of HR images, searched with its sub-folders, or demo")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--protocol", required=True, help=f"one of {', '.join(PROTOCOLS)}")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="settings of the protocol (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one for every CPU core")
    return parser.parse_args()


def make() -> int:
    """Write one test set."""
    args = parse_arguments()
    request = SetRequest(
        roots=tuple(args.folder),
        out=args.out,
        protocol=args.protocol,
        scale=args.scale,
        settings=None if args.settings is None else tuple(args.settings),
        seed=args.seed,
    )
    count = make_test_set(request, args.processes, progress=True)
    print(f"{args.out}: {count.written} images written, {count.kept} were there.")
    return 0


def main() -> int:
    """Write one test set, or say why it cannot be."""
    return run_tool(make, "interrupted: the same command goes on from here")


if __name__ == "__main__":
    raise SystemExit(main())
