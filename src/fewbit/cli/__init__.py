"""The command line: parse, call, print. Nothing slow is imported before a verb runs."""

from fewbit.cli.main import main

__all__ = ["main"]
