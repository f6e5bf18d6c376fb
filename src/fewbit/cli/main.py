"""The verbs under one name, and how their errors end."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from fewbit.cli.bench import bench
from fewbit.cli.compare import compare
from fewbit.cli.doctor import doctor
from fewbit.cli.evaluate import evaluate
from fewbit.cli.export import export
from fewbit.cli.generate import generate
from fewbit.cli.inspect import inspect
from fewbit.cli.push import push
from fewbit.cli.quantize import quantize
from fewbit.cli.recipes import recipes
from fewbit.cli.saying import end, say
from fewbit.errors import FewbitError
from fewbit.version import __version__


class Verbs(click.Group):
    """What is the caller's to fix is one line on standard error and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        for library in ("TRANSFORMERS", "DIFFUSERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _one_line
                return super().invoke(ctx)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "fewbit"
            return end(ctx, f"error: {error.format_message()} Try `{verb} --help`.", 2)
        except FewbitError as error:
            return end(ctx, f"error: {error}", 2)
        except OSError as error:
            if error.filename is None:
                raise
            return end(ctx, f"error: cannot use {error.filename}: {error.strerror}", 2)
        except KeyboardInterrupt:
            return end(ctx, "stopped", 130)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    if not click.get_current_context().params.get("quiet"):
        say(f"warning: {' '.join(str(message).split())}", err=True)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="fewbit", message="fewbit %(version)s")
def main() -> None:
    """Few-bit diffusion transformers: quantize them, look inside, draw pictures."""


for verb in (quantize, generate, evaluate, compare, bench, inspect, export, push, recipes, doctor):
    main.add_command(verb)
