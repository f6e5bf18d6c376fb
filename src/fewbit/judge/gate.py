"""The quality gate: is what was drawn a picture at all?

A healthy quantized model is only a little worse; these are the ways in which a broken one shows.
Each is judged beside the same seeds in full precision, so that a dark subject is not a black image.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLAT = 2.0  # deviation of all values of a picture, in levels of 255
DARK = 8.0  # mean of a flat picture that is called black
DRIFT = 20.0  # levels that the mean colour may move
CLIPPED = 0.10  # more of all values may lie at 0 or 255


class Gate:
    """Fed with pairs of pictures, uint8 [3, height, width]; keeps sums only."""

    def __init__(self) -> None:
        self.pairs = self.black = self.constant = 0
        self.drift = torch.zeros(3, dtype=torch.float64)
        self.clipped = 0.0
        self.first_flat: int | None = None

    def add(self, reference: Tensor, picture: Tensor) -> None:
        self.pairs += 1
        if _is_flat(picture) and not _is_flat(reference):
            self.first_flat = self.pairs - 1 if self.first_flat is None else self.first_flat
            dark = picture.double().mean() < DARK
            self.black += int(dark)
            self.constant += int(not dark)
        self.drift += picture.double().mean((1, 2)) - reference.double().mean((1, 2))
        self.clipped += _share_clipped(picture) - _share_clipped(reference)

    def findings(self) -> list[str]:
        """What is wrong, a sentence each; none where the gate is passed."""
        found = []
        for count, what in [(self.black, "black"), (self.constant, "of one colour")]:
            if count:
                found.append(f"{count} of {self.pairs} pictures are {what}")
        drift = (self.drift / max(self.pairs, 1)).tolist()
        if max(map(abs, drift)) > DRIFT:
            moved = ", ".join(f"{name} {by:+.0f}" for name, by in zip("RGB", drift, strict=True))
            found.append(f"the mean colour moved by {moved} of 255, allowed {DRIFT:.0f}")
        clipped = self.clipped / max(self.pairs, 1)
        if clipped > CLIPPED:
            found.append(f"{clipped:.0%} more values are saturated, allowed {CLIPPED:.0%}")
        return found


def _is_flat(picture: Tensor) -> bool:
    return picture.double().std(correction=0).item() < FLAT


def _share_clipped(picture: Tensor) -> float:
    return ((picture == 0) | (picture == 255)).double().mean().item()
