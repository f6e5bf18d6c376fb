"""Rows for the DiT of the `small` fixture, and what a model gives and holds."""

import torch

from fewbit.calibration import RowSet


def rows(count=12, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "hidden_states": torch.randn(1, 4, 8, 8, generator=random),
            "timestep": torch.tensor([10 * row + 1]),
            "class_labels": torch.tensor([row % 10]),
        }
        for row in range(count)
    ]


def run(model):
    given = RowSet.from_items(rows(4, seed=9)).take(range(4))
    with torch.no_grad():
        return model(**given).sample


def bits_of(model):
    state = model.state_dict().items()
    return {name: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in state}
