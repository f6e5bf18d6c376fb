"""What tests of kernels share."""

from collections.abc import Iterator

import pytest

from fewbit.kernels.native import ops as native
from fewbit.kernels.native.library import ISAS

HERE = (
    [isa for isa in ISAS if native.functions().fewbit_supports(isa.encode())]
    if native.available()
    else []
)


@pytest.fixture(params=HERE)
def isa(request: pytest.FixtureRequest, one_thread: None) -> Iterator[str]:
    """Every instruction set of this machine."""
    native.functions().fewbit_choose(request.param.encode())
    yield request.param
    native.functions().fewbit_choose(native.isa().encode())
