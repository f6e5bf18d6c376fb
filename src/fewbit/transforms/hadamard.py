"""The randomized Hadamard rotation R = diag(s)·H/√n: x·R on the input, W·R in the weight.

H is a Kronecker product of small matrices, each of which mixes a token along an axis of its own.
The signs s are not optional: without them one constant row of H collects the mean of the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.kernels.choose import backend_for
from fewbit.kernels.precision import without_autocast
from fewbit.kernels.values import Rotation
from fewbit.transforms.hadamard_matrix import factors, kronecker, steps
from fewbit.transforms.transform import Transform, checked_width, same_width

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

    def matrices(self) -> list[Tensor]:
        """The ±1 matrices whose Kronecker product, in this order, is H, as int8."""
        return [kronecker(bases) for bases in steps(self.order)]

    def input(self, x: Tensor) -> Tensor:
        """x·R along the last axis."""
        matrices = tuple(matrix.to(x.device) for matrix in self.matrices())
        return rotated(x, Rotation(self.signs().to(x.device), matrices))

    def weight(self, weight: Tensor) -> Tensor:
        """W·R for W [out, width]: R is orthogonal, so (x·R)·(W·R)ᵀ = x·Wᵀ."""
        return self.input(weight)

    def inverse(self, x: Tensor) -> Tensor:
        """x·Rᵀ along the last axis."""
        matrices = tuple(matrix.T.to(x.device) for matrix in self.matrices())
        signs = self.signs().to(x.device)
        return rotated(x, Rotation(torch.ones_like(signs), matrices)) * signs


class HadamardTransform(Transform):
    """`Hadamard.input` as a module; the signs travel with the checkpoint."""

    signs: Tensor

    def __init__(self, hadamard: Hadamard) -> None:
        super().__init__()
        self.hadamard = hadamard
        self.register_buffer("signs", hadamard.signs())
        matrices = hadamard.matrices()
        self._names = [f"matrix_{number}" for number in range(len(matrices))]
        for name, matrix in zip(self._names, matrices, strict=True):
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return rotated(x, self.rotation)

    def split(self) -> tuple[Callable[[Tensor], Tensor] | None, Rotation | None]:
        return None, self.rotation

    def check_width(self, columns: int) -> None:
        same_width(self.hadamard.width, columns)

    def weight(self, weight: Tensor) -> Tensor:
        return rotated(weight, self.rotation)

    @property
    def rotation(self) -> Rotation:
        return Rotation(self.signs, tuple(self.get_buffer(name) for name in self._names))

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self.hadamard)}

    def extra_repr(self) -> str:
        return f"hadamard {self.hadamard.block or self.hadamard.width}"


def from_config(config: dict[str, Any]) -> HadamardTransform:
    width, block, seed = checked_width(config["width"]), config["block"], config["seed"]
    if not (block is None or type(block) is int) or type(seed) is not int or abs(seed) >> 63:
        raise BadArgument(f"a rotation has a block and a seed, got {block!r:.80} and {seed!r:.80}")
    return HadamardTransform(Hadamard(width, block, seed))


def allowed_blocks(width: int) -> list[int]:
    """The block sizes that divide the width and have a Hadamard matrix, largest first."""
    return [n for n in range(width, 1, -1) if width % n == 0 and factors(n) is not None]


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """float32 inside, or float64 for a float64 input; the result has the dtype of the input."""
    rows = x.reshape(-1, x.shape[-1])
    with without_autocast(x):
        return backend_for(x).rotate(rows, rotation).view(x.shape).to(x.dtype)


def _no_hadamard(width: int, block: int | None) -> str:
    asked = "full Hadamard rotation" if block is None else f"Hadamard rotation by blocks of {block}"
    nearest = sorted(allowed_blocks(width), key=lambda n: abs(n - (block or width)))[:6]
    allowed = f"blocks of {', '.join(map(str, nearest))}" if nearest else "no rotation"
    return f"width {width} has no {asked}; allowed: {allowed}"
