"""What is measured of the networks themselves, on what those of the reference are called with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fewbit.engine.stored_size import Size
from fewbit.judge.cost import Cost, cost_of
from fewbit.judge.layers import LayerErrors
from fewbit.judge.scores import Basis, Score
from fewbit.judge.trajectory import Pair, TrajectoryFidelity, energies_of, fidelity
from fewbit.models import denoises
from fewbit.models.hidden import shown

BATCH = 8
Pairs = Mapping[str, Pair]  # by the name that the pipeline gives the network


def trajectory_of(pairs: Pairs) -> TrajectoryFidelity | None:
    """Of all networks that denoise: they take turns, each at its own timesteps."""
    denoisers = _denoisers(pairs)
    if not denoisers:
        return None
    signal: Counter[float] = Counter()
    noise: Counter[float] = Counter()
    layers = []
    for name, pair in denoisers.items():
        with shown(pair.reference):  # its linears by the names of those that were quantized
            heard = LayerErrors(pair.reference, pair.quantized)
            one, other = energies_of(pair, BATCH, heard)
        signal.update(one)
        noise.update(other)
        inside = f"{name}." if len(denoisers) > 1 else ""
        layers += [replace(layer, name=f"{inside}{layer.name}") for layer in heard.found()]
    return fidelity(signal, noise, layers)


def costs_of(pairs: Pairs) -> Cost | None:
    """Of all networks that denoise: their bytes, and the time of one step of each."""
    each = [cost_of(one.quantized, one.reference, one.rows) for one in _denoisers(pairs).values()]
    if not each:
        return None
    return Cost(
        sum((cost.size for cost in each), Size()),
        sum(cost.bf16_bytes for cost in each),
        sum(cost.seconds for cost in each) / len(each),
        sum(cost.bf16_seconds for cost in each) / len(each),
    )


def scores_of(pairs: Pairs, found: TrajectoryFidelity | None, seed: int) -> Iterator[Score]:
    """Of the noise prediction; beside it of each network, where there are several."""
    rows = [pair.rows for pair in _denoisers(pairs).values()]
    if found is not None:
        sha256 = rows[0].fingerprint()
        count = sum(map(len, rows))
        basis = Basis(count, seed, "full precision on its own latents", sha256)
        yield Score("noise prediction", found.sqnr, "higher", basis, "dB")
    for name, pair in pairs.items() if len(pairs) > 1 else ():
        sqnr = fidelity(*energies_of(pair, BATCH, None), ()).sqnr
        basis = Basis(
            len(pair.rows), seed, "full precision on its own calls", pair.rows.fingerprint()
        )
        yield Score(name, sqnr, "higher", basis, "dB")


def _denoisers(pairs: Pairs) -> Pairs:
    return {name: pair for name, pair in pairs.items() if denoises(name)}
