"""Test as an option file says: `python tools/test.py -opt options/test_aacl.yml`."""

from pathlib import Path

from bsr_plugins.engine import run, test_pipeline

if __name__ == "__main__":
    raise SystemExit(run(test_pipeline, Path(__file__).resolve().parents[1]))
