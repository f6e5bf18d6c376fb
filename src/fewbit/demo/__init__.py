"""Small pipelines that ship with fewbit, how they were made, and what judges their pictures."""

from fewbit.demo.assets import classifier, load, names, path
from fewbit.demo.outliers import with_outliers

__all__ = ["classifier", "load", "names", "path", "with_outliers"]
