"""Train as an option file says: `python tools/train.py -opt options/train_aacl.yml`."""

from pathlib import Path

from bsr_plugins.engine import run, train_pipeline

if __name__ == "__main__":
    raise SystemExit(run(train_pipeline, Path(__file__).resolve().parents[1]))
