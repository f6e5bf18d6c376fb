"""A diffusion transformer that no library has: two streams, lists that take turns, a gated MLP, and
an expert layer with experts that no token chooses."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

WIDTH, HEADS, EXPERTS = 32, 2, 3


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Meeting(nn.Module):
    """Image and text meet in one attention."""

    def __init__(self) -> None:
        super().__init__()
        for stream in ("image", "text"):
            for name in ("ask", "find", "say", "merge"):
                setattr(self, f"{stream}_{name}", nn.Linear(WIDTH, WIDTH))
        self.shift = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.shift(silu(time))[:, None].chunk(2, dim=-1)
        x, y = self.norm(image) * (1 + scale) + shift, self.norm(text)
        joined = (
            torch.cat([getattr(self, f"text_{name}")(y), getattr(self, f"image_{name}")(x)], dim=1)
            for name in ("ask", "find", "say")
        )
        said = attend(*joined)
        of_text, of_image = said[:, : text.shape[1]], said[:, text.shape[1] :]
        return image + self.image_merge(of_image), text + self.text_merge(of_text)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.opens = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.brings = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.closes = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.closes(silu(self.opens(x)) * self.brings(x))


class Alone(nn.Module):
    """The image by itself: attention, then experts, of which the last is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.all_three = nn.Linear(WIDTH, 3 * WIDTH)
        self.merge = nn.Linear(WIDTH, WIDTH)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.table = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 10)

    def forward(self, image: Tensor) -> Tensor:
        image = image + self.merge(attend(*self.all_three(image).chunk(3, dim=-1)))
        half = image.shape[1] // 2
        first, second = self.experts[0](image[:, :half]), self.experts[1](image[:, half:])
        return image + torch.cat([first, second], dim=1) + image @ self.table[0]


class Loom(nn.Module):
    def __init__(self, turns: int = 2) -> None:
        super().__init__()
        self.takes = nn.Linear(4, WIDTH)
        self.clock = nn.Linear(1, WIDTH)
        self.meetings = nn.ModuleList(Meeting() for _ in range(turns))
        self.alone = nn.ModuleList(Alone() for _ in range(turns))
        self.gives = nn.Linear(WIDTH, 4)

    def forward(self, image: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        image, time = self.takes(image), self.clock(timestep[:, None])
        for meeting, alone in zip(self.meetings, self.alone, strict=True):
            image, text = meeting(image, text, time)
            image = alone(image)
        return self.gives(image)


def loom(turns: int = 2) -> Loom:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Loom(turns).eval()


def call() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 16, 4, generator=generator),
        "text": torch.randn(2, 6, WIDTH, generator=generator),
        "timestep": torch.tensor([0.2, 0.8]),
    }
