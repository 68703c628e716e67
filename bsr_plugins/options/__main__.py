"""Write the reference of options, `docs/options.md`, and the JSON schema for editors, `options/schema.json`.

Run `python -m bsr_plugins.options` in the repository.
"""

import json
from pathlib import Path

import bsr_plugins  # noqa: F401  registers everything
from bsr_plugins.atomic_file import write_atomically
from bsr_plugins.options.reference import json_schema, markdown


def main() -> None:
    """Write both files below the current directory."""
    Path("docs").mkdir(exist_ok=True)
    write_atomically(Path("docs/options.md"), markdown().encode())
    write_atomically(Path("options/schema.json"), (json.dumps(json_schema(), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
