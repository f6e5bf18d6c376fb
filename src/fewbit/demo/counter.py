"""Random numbers that are a pure function of (seed, index): no state, no order, any machine."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, index: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each index."""  # (N,) -> (N, count)
    stream = _mix(np.array([seed], np.uint64) + _STEP)
    picture = _mix(stream + index.astype(np.uint64) * _STEP)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return (_mix(picture[:, None] + columns) >> np.uint64(11)) * 2.0**-53
