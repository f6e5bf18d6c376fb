"""Make a trained pipeline folder a shipped demo: `python -m demos.ship DIR/shapes`."""

import argparse
import json
import shutil
from pathlib import Path

from fewbit.demo.assets import ASSETS, MANIFEST, digests
from fewbit.files import new_folder, write_text


def ship(source: Path) -> None:
    """Copy the folder among the assets and note the hash of each of its files."""
    with new_folder(ASSETS / source.name, overwrite=True) as fresh:
        shutil.copytree(source, fresh, copy_function=shutil.copyfile, dirs_exist_ok=True)
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    manifest[source.name] = digests(ASSETS / source.name)
    write_text(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a pipeline folder a shipped demo.")
    parser.add_argument("folder", type=Path)
    ship(parser.parse_args().folder)


if __name__ == "__main__":
    main()
