"""Operations of the native kernels that are prepared once for a layer and called in each forward.

All that does not depend on the input is checked and written into a struct beforehand. A call copies
the struct, adds what belongs to this input and runs the C function, so that several threads may
call the same object. An object keeps the tensors alive to which its struct points.

    rows, linear = Rows(fmt, rotation), Linear(packed, weight_scales, bias)
    codes, scales = rows(x)                     # counts of fmt.step, and their unit
    y = linear(codes, scales, torch.float32)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof
from math import inf, prod

import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, Format
from fewbit.formats.scale import ScaleFormat
from fewbit.kernels.native.library import (
    DTYPES,
    MOST_MATRICES,
    FloatLinearTask,
    LinearTask,
    RowsTask,
    address,
    failure,
    functions,
    has_bf16,
    most_depth,
)
from fewbit.kernels.native.packing import contents
from fewbit.kernels.values import Rotation

INT8 = FORMATS["int8"]
MOST_ELEMENTS = 2**31 - 1
MOST_LEVELS = 16  # of a format that is no arithmetic
MOST_ENTRIES = 256  # of a codebook, because an assignment is a byte
MOST_GROUP = 256  # columns of an input that share a scale
MOST_HEAD = 512  # columns of a head of attention whose rows are rounded
LANES = 8  # columns that a product takes at a time
SCALE_KINDS = {"fp32": 0, "e8m0": 1, "e4m3row": 2, "factor": 3}  # as csrc/tasks.h numbers them
OTHER_SHAPE = 2  # the status of a weight that does not belong to its input


class Rows:
    """Rounds the rows of an input to a format, after a rotation if there is one; in `groups` of
    columns if there are such."""

    def __init__(
        self, fmt: Format, rotation: Rotation | None = None, groups: Groups | None = None
    ) -> None:
        self._settle(levels_of(fmt), rotation)
        self._groups = groups
        if groups is not None:
            groups.settle(self._task, fmt)

    @classmethod
    def by(cls, numbers: Sequence[float], rotation: Rotation | None) -> Rows:
        """From the `levels_of` a format, for torch's dispatcher passes no formats on."""
        rows = cls.__new__(cls)
        rows._settle(numbers, rotation)
        rows._groups = None
        return rows

    def _settle(self, numbers: Sequence[float], rotation: Rotation | None) -> None:
        mantissa, top, self._step, smallest_normal, zero, *ladder = numbers
        self._ladder = torch.tensor(ladder, dtype=torch.float32, device="cpu")
        self._run = functions().fewbit_rows
        self._task = RowsTask(
            tokens=1,
            mantissa=int(mantissa),
            norm=1.0,
            top=top,
            step=self._step,
            smallest_normal=smallest_normal,
            zero=zero,
            ladder=address(self._ladder) if ladder else None,
        )
        self._rotated = None if rotation is None else rotation.signs.numel()
        if rotation is None:
            return
        task, matrices, order = self._task, rotation.matrices, rotation.order
        if len(matrices) > MOST_MATRICES or rotation.signs.numel() % order:
            raise _unrotated(rotation.signs.numel(), order)
        smooth = None if rotation.smooth is None else _floats(rotation.smooth)
        task.smooth, self._kept = address(smooth), [smooth]
        if not matrices:
            return
        signs = _int8(rotation.signs).float()
        entries = torch.cat([_int8(matrix).float().t().flatten() for matrix in matrices])
        self._kept += [signs, entries]
        task.signs, task.matrices = address(signs), address(entries)
        task.count, task.orders[: len(matrices)] = len(matrices), [len(one) for one in matrices]
        task.norm = order**-0.5

    def __call__(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        eps: float = 0.0,
        mean: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [..., K] to codes (int8 [M, K]) that count the format's step, and scales (float32
        [M, 1], or of groups [M, G]). With shift and scale, x is first what `layer_norm_modulate`
        makes of it; a mean [images, K], float32, is taken off the rows of its image."""
        if x.numel() > MOST_ELEMENTS:
            raise too_large(x)
        columns = x.shape[-1]
        if self._rotated not in (None, columns):
            raise _unrotated(columns, prod(self._task.orders[: self._task.count]))
        codes = x.new_empty(prod(x.shape[:-1]), columns, dtype=torch.int8)
        groups = 1 if self._groups is None else self._groups.count(columns)
        scales = x.new_empty(codes.shape[0], groups, dtype=torch.float32)
        if not x.numel():
            return codes, scales.fill_(self._step)
        task = RowsTask.from_buffer_copy(self._task)
        task.codes, task.scales = codes.data_ptr(), scales.data_ptr()
        if mean is not None:
            mean = _means(mean, codes)
            task.mean, task.tokens = mean.data_ptr(), codes.shape[0] // mean.shape[0]
        run_rows(self._run, task, x, shift, scale, eps)
        return codes, scales


class Groups:
    """Groups of so many columns with a scale each, stored as `scale` stores them; of the scale that
    clips nothing and those that are `stretches` times as large, the one that loses least. Integer
    factors become part of the codes, and a row has one scale."""

    def __init__(self, size: int, scale: ScaleFormat, stretches: Sequence[float] = ()) -> None:
        if not has_groups(size, scale):
            raise BadArgument(
                f"groups of {size} columns with scales in {scale.name} have no native kernel: it "
                f"takes up to {MOST_GROUP} columns, and scales in {', '.join(SCALE_KINDS)}"
            )
        self.size, self.scale = size, scale
        self._stretches = torch.tensor(list(stretches), dtype=torch.float32, device="cpu")

    def settle(self, task: RowsTask, fmt: Format) -> None:
        task.group, task.bottom = self.size, fmt.min
        task.scale_kind, task.most_factor = SCALE_KINDS[self.scale.name], self.scale.factors
        task.stretches, task.stretch_count = address(self._stretches), len(self._stretches)

    def count(self, columns: int) -> int:
        if columns % self.size:
            raise BadArgument(f"groups of {self.size} do not divide {columns} columns")
        return 1 if self.scale.by_row else columns // self.size


class FixedRows:
    """Rounds the rows of an input by steps that are known, after a rotation if there is one. Of two
    regions each has a step of its own: codes of the lower one are never positive, those of the
    upper one never negative, but for the first `whole` columns, which are all of the upper one."""

    def __init__(
        self, fmt: Format, rotation: Rotation | None, regions: int = 1, whole: int = 0
    ) -> None:
        self._rows = Rows(fmt, rotation)
        task = self._task = RowsTask.from_buffer_copy(self._rows._task)
        task.bottom, task.regions, task.whole = fmt.min, regions, whole

    def __call__(
        self,
        x: Tensor,
        steps: Tensor,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        eps: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """x [..., K] by steps [regions, images], to codes (int8 [regions * M, K]), those of the
        lower region first, and scales (float32 [regions * M, 1])."""
        if x.numel() > MOST_ELEMENTS:
            raise too_large(x)
        regions, images = steps.shape
        columns, count = x.shape[-1], prod(x.shape[:-1])
        if self._rows._rotated not in (None, columns):
            raise _unrotated(columns, prod(self._task.orders[: self._task.count]))
        if regions != self._task.regions or not images or count % images:
            raise BadArgument(
                f"{count} rows in {self._task.regions} regions have no steps {list(steps.shape)}"
            )
        codes = x.new_empty(regions * count, columns, dtype=torch.int8)
        scales = x.new_empty(regions * count, 1, dtype=torch.float32)
        steps, task = steps.float().contiguous(), RowsTask.from_buffer_copy(self._task)
        task.codes, task.scales, task.steps = map(address, (codes, scales, steps))
        task.sharing = count // images
        run_rows(self._rows._run, task, x, shift, scale, eps)
        return codes, scales


class Split:
    """Takes the components of rows along directions (int8 [r, K]) out of them, after a rotation if
    there is one: these in int8, and what is left in a format, perhaps in groups, or as floats."""

    def __init__(
        self,
        directions: Tensor,
        rotation: Rotation | None,
        fmt: Format | None = None,
        groups: Groups | None = None,
    ) -> None:
        rank, self._columns = directions.shape
        squares = directions.double().square().sum(1).float()
        self._rows, self._groups = Rows(INT8 if fmt is None else fmt, rotation, groups), groups
        self._kept, self._rounds = (_int8(directions).contiguous(), squares), fmt is not None
        task = self._task = RowsTask.from_buffer_copy(self._rows._task)
        task.directions, task.squares = map(address, self._kept)
        task.rank = rank

    def __call__(
        self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None, eps: float = 0.0
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor | None]:
        """Codes and scales of the components, then those of what is left, or floats [M, K]."""
        if x.numel() > MOST_ELEMENTS:
            raise too_large(x)
        if x.shape[-1] != self._columns:
            raise failure(OTHER_SHAPE)
        count, task = prod(x.shape[:-1]), RowsTask.from_buffer_copy(self._task)
        aside = x.new_empty(count, task.rank, dtype=torch.int8)
        aside_scales = x.new_empty(count, 1, dtype=torch.float32)
        task.aside, task.aside_scales = aside.data_ptr(), aside_scales.data_ptr()
        left = x.new_empty(
            count, self._columns, dtype=torch.int8 if self._rounds else torch.float32
        )
        groups = 1 if self._groups is None else self._groups.count(self._columns)
        scales = x.new_empty(count, groups, dtype=torch.float32) if self._rounds else None
        if scales is None:
            task.out = left.data_ptr()
        else:
            task.codes, task.scales = left.data_ptr(), scales.data_ptr()
        run_rows(self._rows._run, task, x, shift, scale, eps)
        return (aside, aside_scales), left, scales


class Linear:
    """Multiplies codes of rows by a packed weight with scales [N, G] and adds a bias. The levels of
    a weight in 4 bits may have integer factors [N, F] of their groups."""

    def __init__(
        self,
        packed: Tensor,
        weight_scales: Tensor,
        bias: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        channels, columns, groups = _sizes(packed, weight_scales)
        most = most_depth()
        if columns // groups > most:
            raise BadArgument(
                f"{columns} columns in {groups} groups: an int32 sum of products of codes holds "
                f"at most {most} columns of a group"
            )
        factors = _factors(factors, packed)
        self._kept = packed, _floats(weight_scales), _bias(bias, channels), factors
        self._columns, self._channels = columns, channels
        self._task = LinearTask(
            weight=address(packed),
            factors=address(factors),
            factor_groups=1 if factors is None else factors.shape[1],
            weight_scales=address(self._kept[1]),
            bias=address(self._kept[2]),
            weight_bytes=packed.numel(),
            n=channels,
            k=columns,
            tokens=1,
            groups=groups,
        )
        self._run = functions().fewbit_linear

    def __call__(
        self,
        codes: Tensor,
        row_scales: Tensor,
        out_dtype: torch.dtype,
        gelu: bool = False,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
        side: tuple[Linear, Tensor, Tensor] | None = None,
        common: Tensor | None = None,
    ) -> Tensor:
        """Codes [M, K] with scales [M, 1], or of groups that are as many as its own or several in
        each of those, to [M, N]. Rows `common` [images, N] stand for the bias.

        In float32, before it is rounded, a `side` is added to the result: a product of as many rows
        and channels, its codes and scales. Then GELU may be taken of it, or what comes of it is
        residual [M, N] + gate [images, N] * result, an image having as many rows as another.
        """
        if out_dtype not in DTYPES:
            raise unknown(out_dtype)
        task, *_kept = self._given(codes, row_scales)
        rows = codes.shape[0]
        if side is not None:
            beside, *_also_kept = side[0]._given(*side[1:])
            task.side = addressof(beside)
        if common is not None:
            task.common, task.sharing = address(common), self._sharing(rows, common)
        if gate is not None and residual is not None:
            gate, residual = gate.float().contiguous(), residual.to(out_dtype).contiguous()
            self._add_gate(task, rows, gate, residual, gelu)
        out = codes.new_empty(rows, self._channels, dtype=out_dtype)
        if not out.numel():
            return out
        task.out, task.gelu, task.out_dtype = out.data_ptr(), gelu, DTYPES[out_dtype]
        status = self._run(task)
        if status:
            raise failure(status)
        return out

    def _given(self, codes: Tensor, row_scales: Tensor) -> tuple[LinearTask, Tensor, Tensor]:
        """A task of this input, and the tensors it points to."""
        if codes.numel() > MOST_ELEMENTS:
            raise too_large(codes)
        rows, columns = codes.shape
        if columns != self._columns:
            raise failure(OTHER_SHAPE)
        one = row_scales.shape == (rows, 1)
        if not one and not self._has_groups(row_scales, rows):
            raise BadArgument(
                f"{rows} rows need scales [{rows}, 1], or of whole lanes in groups that divide "
                f"the weight's, got {list(row_scales.shape)}"
            )
        if codes.dtype != torch.int8:
            raise _not_int8(codes)
        codes, row_scales = codes.contiguous(), row_scales.float().contiguous()
        task = LinearTask.from_buffer_copy(self._task)
        task.codes, task.scales, task.m = address(codes), address(row_scales), rows
        task.scale_groups = row_scales.shape[1]
        return task, codes, row_scales

    def _sharing(self, rows: int, common: Tensor) -> int:
        """Rows of an image."""
        images = max(common.shape[0], 1)
        whole = common.shape[1:] == (self._channels,) and rows % images == 0
        if not whole or common.dtype != torch.float32 or not common.is_contiguous():
            raise failure(OTHER_SHAPE)
        return rows // images

    def _has_groups(self, scales: Tensor, rows: int) -> bool:
        return scales.dim() == 2 and scales.shape[0] == rows and self.takes(scales)

    def takes(self, row_scales: Tensor) -> bool:
        """Whether the groups of rows that have these scales go with its own."""
        groups = row_scales.shape[1]
        whole = groups > 0 and self._columns % (LANES * groups) == 0
        return groups == 1 or (whole and groups % self._task.groups == 0)

    def _add_gate(
        self, task: LinearTask, rows: int, gate: Tensor, residual: Tensor, gelu: bool
    ) -> None:
        channels, images = self._channels, gate.shape[0]
        tokens = rows // max(images, 1)
        right = gate.shape == (images, channels) and residual.shape == (rows, channels)
        if gelu or not right or images * tokens != rows:
            raise BadArgument(
                f"a result [{rows}, {channels}], not of GELU, is gated by [images, {channels}] and "
                f"added to [{rows}, {channels}], got {list(gate.shape)}, {list(residual.shape)}"
            )
        task.gate, task.residual, task.tokens = address(gate), address(residual), tokens


class FloatLinear:
    """Multiplies floats by a packed weight with scales [N, G] and adds a bias, with exact products
    and float32 sums."""

    def __init__(self, packed: Tensor, weight_scales: Tensor, bias: Tensor | None = None) -> None:
        channels, columns, groups = _sizes(packed, weight_scales)
        self._kept = packed, _floats(weight_scales), _bias(bias, channels)
        self._columns, self._multiplies_bf16 = columns, has_bf16()
        self._few = functions().fewbit_few_rows()
        self._task = FloatLinearTask(
            weight=address(packed),
            weight_scales=address(self._kept[1]),
            bias=address(self._kept[2]),
            weight_bytes=packed.numel(),
            n=channels,
            k=columns,
            d=1,
            groups=groups,
        )

    def __call__(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        """x [M, K], not quantized, to [M, N]."""
        rows, columns = x.shape
        if columns != self._columns:
            raise failure(OTHER_SHAPE)
        half = self._multiplies_bf16 and x.dtype == torch.bfloat16 and rows > self._few
        task = FloatLinearTask.from_buffer_copy(self._task)
        return _multiply_floats(task, x, half, out_dtype, self._kept[2])


class VectorLinear:
    """Multiplies floats by vectors of a codebook [k, d] and adds a bias.

    `assignments` [N, K/d] name the vectors. The codebook is rounded to bfloat16 if the input is.
    """

    def __init__(
        self,
        assignments: Tensor,
        codebook: Tensor,
        weight_scales: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        channels, vectors = assignments.shape
        entries, length = codebook.shape
        self._sizes, columns = (vectors, length, entries), vectors * length
        if not 0 < length <= 256 or entries > MOST_ENTRIES:
            raise _unfit(columns, *self._sizes)
        if assignments.dtype != torch.uint8:
            raise BadArgument(f"assignments are uint8, got {assignments.dtype}")
        if weight_scales is not None and weight_scales.numel() != channels:
            raise BadArgument(
                f"{channels} channels have as many scales, got {weight_scales.numel()}"
            )
        if entries < MOST_ENTRIES and columns * channels and int(assignments.max()) >= entries:
            raise BadArgument(f"an assignment is beyond the {entries} entries of its codebook")
        self._half = has_bf16() and length % 2 == 0
        floats, rounded = _floats(codebook), codebook.to(torch.bfloat16).contiguous()
        self._codebooks = floats, rounded if self._half else rounded.float()
        scales = None if weight_scales is None else _floats(weight_scales)
        self._kept = assignments.contiguous(), floats, scales, _bias(bias, channels)
        self._task = FloatLinearTask(
            assignments=address(self._kept[0]),
            weight_scales=address(scales),
            bias=address(self._kept[3]),
            n=channels,
            k=columns,
            d=length,
            groups=1,
        )

    def __call__(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        """x [M, K] to [M, N]."""
        columns = x.shape[1]
        if columns != self._task.k:
            raise _unfit(columns, *self._sizes)
        is_half = x.dtype == torch.bfloat16
        task = FloatLinearTask.from_buffer_copy(self._task)
        task.codebook = address(self._codebooks[is_half])
        return _multiply_floats(task, x, self._half and is_half, out_dtype, self._kept[3])


def levels_of(fmt: Format) -> list[float]:
    """Mantissa bits, the largest level, the step, where subnormal numbers end, and the scale of
    zeros; then the ladder of a format without arithmetic, which csrc/rows.inc describes."""
    if not has_rows(fmt):
        raise BadArgument(
            f"activations in {fmt} have no native kernel: it takes signed integers, few-bit floats "
            f"and up to {MOST_LEVELS} levels, all of them integers of 8 bits"
        )
    how = fmt.arithmetic
    if how is not None:
        return [how.mantissa, fmt.max, fmt.step, how.normal, fmt.zero_scale]
    return [0, fmt.max, fmt.step, 1, fmt.zero_scale, *_heap(fmt), *_steps(fmt)]


def has_rows(fmt: Format) -> bool:
    """Whether `Rows` rounds to it."""
    few = fmt.signed and len(fmt.levels) <= MOST_LEVELS
    return fmt.exact_in(8) and (few or fmt.arithmetic is not None)


def has_groups(size: int, scale: ScaleFormat) -> bool:
    """Whether `Rows` takes groups of that kind."""
    return size <= MOST_GROUP and scale.name in SCALE_KINDS


def _heap(fmt: Format) -> list[float]:
    """The boundaries between its levels, ascending where the nodes are read from left to right."""
    ascending = [*fmt.boundaries, *[inf] * (MOST_LEVELS - len(fmt.levels))]
    heap = [0.0] * MOST_LEVELS
    for depth in range(MOST_LEVELS.bit_length() - 1):
        first, apart = 1 << depth, MOST_LEVELS >> depth
        heap[first : 2 * first] = ascending[apart // 2 - 1 :: apart]
    return heap


def _steps(fmt: Format) -> list[float]:
    levels = [level / fmt.step for level in fmt.levels]
    return levels + levels[-1:] * (MOST_LEVELS - len(levels))


def run_rows(
    run: Callable[[RowsTask], int],
    task: RowsTask,
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> None:
    """Adds the input to a task that has its outputs, and runs it."""
    columns = x.shape[-1]
    if x.dtype not in DTYPES:
        raise unknown(x.dtype)
    x = x.contiguous()
    if shift is not None and scale is not None:
        shift, scale = shift.float().contiguous(), scale.float().contiguous()
        if x.dim() != 3 or shift.shape != (x.shape[0], columns) or scale.shape != shift.shape:
            raise BadArgument(
                f"an input {list(x.shape)} needs shift and scale [{x.shape[0]}, {columns}], "
                f"got {list(shift.shape)} and {list(scale.shape)}"
            )
        task.shift, task.scale, task.tokens = address(shift), address(scale), x.shape[1]
        task.eps = eps
    task.x, task.m, task.k = address(x), x.numel() // columns, columns
    task.dtype = DTYPES[x.dtype]
    status = run(task)
    if status:
        raise failure(status)


def _means(mean: Tensor, codes: Tensor) -> Tensor:
    images = mean.shape[0]
    if mean.shape != (images, codes.shape[1]) or not images or codes.shape[0] % images:
        raise BadArgument(f"rows {list(codes.shape)} have no means {list(mean.shape)}")
    return mean.float().contiguous()


def too_large(x: Tensor) -> BadArgument:
    return BadArgument(f"an input {list(x.shape)} is beyond the {MOST_ELEMENTS} elements allowed")


def unknown(dtype: torch.dtype) -> BadArgument:
    return BadArgument(f"the native kernels take float32 and bfloat16, got {dtype}")


def _multiply_floats(
    task: FloatLinearTask, x: Tensor, half: bool, out_dtype: torch.dtype, bias: Tensor | None
) -> Tensor:
    if x.numel() > MOST_ELEMENTS:
        raise too_large(x)
    if out_dtype not in DTYPES:
        raise unknown(out_dtype)
    out = x.new_empty(x.shape[0], task.n, dtype=out_dtype)
    if not x.numel() or not out.numel():
        return out.zero_() if bias is None else out.copy_(bias)
    x = (x if half else x.float()).contiguous()
    if half and x.data_ptr() % 4:  # two are read at a time
        x = x.clone()
    task.x, task.out, task.m = address(x), out.data_ptr(), x.shape[0]
    task.dtype, task.out_dtype = DTYPES[x.dtype], DTYPES[out_dtype]
    status = functions().fewbit_float_linear(task)
    if status:
        raise failure(status)
    return out


def _sizes(packed: Tensor, weight_scales: Tensor) -> tuple[int, int, int]:
    """Channels, columns and groups of a packed weight with its scales."""
    _, channels, columns = contents(packed)
    groups = weight_scales.shape[1]
    if groups != 1 and (not groups or columns % (8 * groups)):
        raise BadArgument(f"{groups} groups of {columns} columns are not multiples of 8 columns")
    if weight_scales.shape[0] != channels:
        raise failure(OTHER_SHAPE)
    return channels, columns, groups


def _factors(factors: Tensor | None, packed: Tensor) -> Tensor | None:
    if factors is None:
        return None
    bits, channels, columns = contents(packed)
    groups = factors.shape[1]
    if bits != 4 or len(factors) != channels or not groups or columns % (8 * groups):
        raise BadArgument(
            f"factors {list(factors.shape)} of {channels} channels of {columns} columns in {bits} "
            "bits: factors are [channels, groups], of codes in 4 bits, in groups of whole lanes"
        )
    if factors.dtype != torch.uint8:
        raise BadArgument(f"factors are uint8, got {factors.dtype}")
    return factors.contiguous()


def _floats(x: Tensor) -> Tensor:
    return x.float().contiguous()


def _bias(bias: Tensor | None, channels: int) -> Tensor | None:
    if bias is None:
        return None
    if bias.numel() != channels:
        raise BadArgument(f"{channels} channels have as many biases, got {bias.numel()}")
    return _floats(bias)


def _int8(x: Tensor) -> Tensor:
    if x.dtype != torch.int8:
        raise _not_int8(x)
    return x


def _not_int8(x: Tensor) -> BadArgument:
    return BadArgument(f"codes, signs and Hadamard matrices are int8, got {x.dtype}")


def _unrotated(columns: int, order: int) -> BadArgument:
    return BadArgument(f"{columns} columns are not rotated by blocks of {order}")


def _unfit(columns: int, vectors: int, length: int, entries: int) -> BadArgument:
    return BadArgument(
        f"{vectors} vectors of {length} do not make {columns} columns, or the codebook has more "
        f"than {MOST_ENTRIES} entries ({entries})"
    )
