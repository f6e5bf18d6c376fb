"""The randomized Hadamard rotation R = diag(s)·H/√n: x·R on the input, W·R in the weight.

H is a Kronecker product, so a token seen as a matrix X becomes leftᵀ·X·right: two small matmuls.
The signs s are not optional: without them one constant row of H collects the mean of the channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.transforms.hadamard_matrix import factors, halves, kronecker
from fewbit.transforms.transform import Transform

Block = int | Literal["auto"] | None

KIND = "hadamard"


@dataclass(frozen=True)
class Hadamard:
    """A rotation of `width` channels, or of every `block` of them, with signs drawn from `seed`."""

    width: int
    block: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.order < 2 or self.width % self.order or factors(self.order) is None:
            raise BadArgument(_no_hadamard(self.width, self.block))

    @classmethod
    def for_width(cls, width: int, seed: int, *, block: Block = None) -> Hadamard:
        """`block` None is the full rotation; "auto" is full or else the largest block there is."""
        if block != "auto":
            return cls(width, block, seed)
        largest = next(iter(allowed_blocks(width)), None)
        return cls(width, None if largest == width else largest, seed)

    @property
    def order(self) -> int:
        """The order of H."""
        return self.width if self.block is None else self.block

    def signs(self) -> Tensor:
        """s, as int8."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        coins = torch.randint(2, (self.width,), generator=generator, device="cpu")
        return (1 - 2 * coins).to(torch.int8)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The ±1 matrices whose Kronecker product is H, as int8."""
        left, right = halves(self.order)
        return kronecker(left), kronecker(right)

    def input(self, x: Tensor) -> Tensor:
        """x·R along the last axis."""
        return _multiply(x * self.signs().to(x.device), *self.matrices())

    def weight(self, weight: Tensor) -> Tensor:
        """W·R for W [out, width]: R is orthogonal, so (x·R)·(W·R)ᵀ = x·Wᵀ."""
        return self.input(weight)

    def inverse(self, x: Tensor) -> Tensor:
        """x·Rᵀ along the last axis."""
        left, right = self.matrices()
        return _multiply(x, left.T, right.T) * self.signs().to(x.device)


class HadamardTransform(Transform):
    """`Hadamard.input` as a module; the signs travel with the checkpoint."""

    signs: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, hadamard: Hadamard) -> None:
        super().__init__()
        self.hadamard = hadamard
        left, right = hadamard.matrices()
        self.register_buffer("signs", hadamard.signs())
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _multiply(x * self.signs, self.left, self.right)

    def weight(self, weight: Tensor) -> Tensor:
        return _multiply(weight * self.signs, self.left, self.right)

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self.hadamard)}

    def extra_repr(self) -> str:
        return f"hadamard {self.hadamard.block or self.hadamard.width}"


def from_config(config: dict[str, Any]) -> HadamardTransform:
    return HadamardTransform(Hadamard(config["width"], config["block"], config["seed"]))


def allowed_blocks(width: int) -> list[int]:
    """The block sizes that divide the width and have a Hadamard matrix, largest first."""
    return [n for n in range(width, 1, -1) if width % n == 0 and factors(n) is not None]


def _multiply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x·(left ⊗ right)/√n for every n consecutive channels, in the dtype of x.

    The ±1 are exact in every dtype and the scale is applied to the accumulator, so bfloat16
    rounds only between the products and at the end. The sums would overflow float16.
    """
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    rows, columns = len(left), len(right)
    tokens = x.to(dtype).reshape(-1, rows, columns)
    if rows > 1:
        tokens = left.T.to(tokens) @ tokens
    tokens = tokens.reshape(-1, columns)
    scale = (rows * columns) ** -0.5
    product = torch.addmm(tokens.new_zeros(1), tokens, right.to(tokens), beta=0, alpha=scale)
    return product.view(x.shape).to(x.dtype)


def _no_hadamard(width: int, block: int | None) -> str:
    asked = "full Hadamard rotation" if block is None else f"Hadamard rotation by blocks of {block}"
    nearest = sorted(allowed_blocks(width), key=lambda n: abs(n - (block or width)))[:6]
    allowed = f"blocks of {', '.join(map(str, nearest))}" if nearest else "no rotation"
    return f"width {width} has no {asked}; allowed: {allowed}"
