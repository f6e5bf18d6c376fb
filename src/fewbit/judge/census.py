"""One pass over a set of pictures: all that the scores of a whole set need to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.judge.features import FeatureNet
from fewbit.judge.inception_score import InceptionScore
from fewbit.judge.moments import FeatureMoments

KEPT = 10_000  # pictures whose pooled features are kept for their neighbours, as ADM does


class Census:
    def __init__(self, net: FeatureNet) -> None:
        self.net = net
        self.pooled, self.spatial = map(FeatureMoments, net.widths)
        self.inception_score = InceptionScore(net.classes)
        self.count = 0
        self.recognised: list[bool] = []
        self._kept: list[Tensor] = []
        self._digest = hashlib.sha256()

    def add(self, pictures: Tensor, classes: Sequence[int] | None = None) -> None:
        """Bytes [N, 3, height, width], and what they should show where the net can tell."""
        seen = self.net.see(pictures)
        self.pooled.add(seen.pooled)
        self.spatial.add(seen.spatial)
        self.inception_score.add(seen.probabilities)
        self._kept.append(seen.pooled[: max(0, KEPT - self.count)].float().cpu())
        self.count += len(pictures)
        self._digest.update(pictures.numpy().tobytes())
        if classes is not None:
            right = seen.probabilities.argmax(1).cpu() == torch.tensor(classes)
            self.recognised += right.tolist()

    def features(self) -> Tensor:
        """Pooled, of the first `KEPT` pictures."""
        return torch.cat(self._kept) if self._kept else torch.empty(0, self.net.widths[0])

    def sha256(self) -> str:
        """Over the bytes of all pictures in order."""
        return self._digest.hexdigest()
