"""Convert the released weights of ReDSR and DASR for our tools, and ours back.

`python tools/convert_checkpoint.py setting1_ckp.tar --out weights/redsr` writes net_g.pth, and net_degrader.pth (ReDSR)
or net_moco.pth (DASR), which only training needs, and prints the options that they fit as YAML. With `--back` it makes
the released file of ours: `python tools/convert_checkpoint.py weights/redsr --back --out setting1_ckp.tar`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from bsr_plugins.archs.released_checkpoints import PARAM_KEYS, convert, convert_back
from bsr_plugins.options.command_line import run_tool


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="released file; with --back, folder of net_g.pth, or a net_g file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; with --back, file to write")
    parser.add_argument("--back", action="store_true", help="make the released file of ours")
    parser.add_argument("--param-key", choices=PARAM_KEYS, help="with --back: weights to take (default: params)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    args = parser.parse_args()
    if args.param_key and not args.back:
        parser.error("--param-key is for --back alone")
    return args


def convert_one() -> int:
    """Convert one checkpoint."""
    args = parse_arguments()
    if args.back:
        convert_back(args.source, args.out, args.param_key or "params", args.force)
        print(f"# {args.out} is written.")
    else:
        options = convert(args.source, args.out, args.force)
        print(f"# {args.out} is written. In an option file (what is not network_g is for training only):")
        print(yaml.safe_dump(options, sort_keys=False), end="")
        print(f"# path.pretrain_network_g: {args.out / 'net_g.pth'}")
    return 0


def main() -> int:
    """Convert one checkpoint, or say why it cannot be."""
    return run_tool(convert_one)


if __name__ == "__main__":
    raise SystemExit(main())
