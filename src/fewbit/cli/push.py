"""fewbit push"""

from __future__ import annotations

from pathlib import Path

import click

from fewbit.cli.options import json_option, quiet_option
from fewbit.cli.saying import say, show


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("repo", metavar="REPO")
@click.option("--private", is_flag=True, help="Hide a new repository from others.")
@json_option
@quiet_option
def push(folder: Path, repo: str, private: bool, as_json: bool, quiet: bool) -> None:
    """Send FOLDER, which fewbit wrote, to REPO (user/name) on the Hugging Face hub.

    The licence on its card is that of the base model's card. Log in before, with `hf auth login`.
    """
    import fewbit

    url = fewbit.push(folder, repo, private=private)
    if as_json:
        show({"url": url})
    elif not quiet:
        say(url)
