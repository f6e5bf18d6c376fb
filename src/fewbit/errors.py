"""Every way fewbit says no. Each message is one sentence: what, where, got, allowed."""


class FewbitError(Exception):
    """Base of all errors that are the caller's to fix; the command line exits with 2 on them."""


class BadArgument(FewbitError, ValueError):
    """A name, setting or value that is not among the allowed ones."""


class BadModel(FewbitError):
    """A model that cannot be quantized as asked: unknown layers, impossible shapes, bad weights."""


class BadCalibration(FewbitError):
    """Calibration data that is missing, not needed, or not usable."""


class BrokenFile(FewbitError):
    """A file that is missing, truncated, altered, or not what it claims to be."""


class BadOutput(FewbitError):
    """A place that cannot be written to, or already holds something else."""
