"""Small pipelines that ship with fewbit, how they were made, and what judges their pictures."""

from fewbit.demo.assets import classifier, load, names, path

__all__ = ["classifier", "load", "names", "path"]
