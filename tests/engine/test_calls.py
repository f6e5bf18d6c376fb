"""Models that no family describes: what is odd in them is rounded plainly or left, and told."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

import fewbit
from fewbit.errors import BadCalibration
from fewbit.methods import hq_dit

FEW = {
    "rtn": {},
    "hq-dit": {},
    "fp4dit": {"steps": 3},
    "vq4dit": {"steps": 3, "bits": "w3"},
    "tq-dit": {"groups": 2, "candidates": 4, "rounds": 1},
}
LEARNING = ("hq-dit", "fp4dit", "vq4dit", "tq-dit")


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            part(x).unflatten(-1, (2, 16)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if self.kind == "causal":
            found = attend(q, k, v, is_causal=True)
        elif self.kind == "grouped":
            found = attend(q, k[:, :1], v[:, :1], enable_gqa=True)
        elif self.kind == "one by one":
            found = torch.cat(
                [attend(*one) for one in zip(*map(self.apart, (q, k, v)), strict=True)]
            )
        else:
            found = attend(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2))

    def apart(self, x):
        return x.split(1)


class Block(nn.Module):
    """Tokens first, as some models have them."""

    def __init__(self, kind):
        super().__init__()
        self.attn = Attention(kind)
        self.up, self.down, self.idle = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, x, table):
        inner = x.transpose(0, 1)
        inner = inner + self.attn(inner) * table
        if self.attn.kind == "twice":
            inner = inner + self.attn(inner)
        return (inner + self.down(nn.functional.gelu(self.up(inner)))).transpose(0, 1)


class Odd(nn.Module):
    """Two lists that alternate, latents in a list, a block that never runs."""

    def __init__(self, kind="plain"):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.ModuleList(Block(kind) for _ in range(3))
            self.second = nn.ModuleList(Block(kind) for _ in range(2))

    def forward(self, latents, timestep, tables):
        x = torch.stack(latents, 1) + timestep.mean() / 1000
        for first, second in zip(self.first, self.second, strict=False):
            x = second(first(x, tables[0]), tables[0])
        return list(x.unbind(1))


ROLES = {
    "attn.q": "q",
    "attn.k": "k",
    "attn.v": "v",
    "attn.out": "attn_out",
    "up": "fc1",
    "down": "fc2",
    "idle": "skip",
}
SPEC = fewbit.ModelSpec(("first", "second"), ROLES, heads=2)


def calls(count=4, batch=2):
    """Two timesteps, two lengths; the table is as long as the batch by chance."""
    random = torch.Generator().manual_seed(0)
    return [
        {
            "latents": [torch.randn(6 + 2 * (n % 2), 32, generator=random) for _ in range(batch)],
            "timestep": torch.tensor([[100.0, 200.0], [700.0, 900.0]])[n // 2],
            "tables": (torch.randn(batch, 1, 32, generator=random),),
        }
        for n in range(count)
    ]


def quantized(recipe, kind="plain", **settings):
    model = Odd(kind)
    given = {} if recipe == "rtn" else {"calibration": calls()}
    options = {**FEW[recipe], **given, **settings}
    report = fewbit.quantize(model, recipe, spec=SPEC, progress=False, **options)
    return model, report


@pytest.mark.parametrize("recipe", FEW)
def test_every_recipe_goes_through(recipe):
    model, report = quantized(recipe)
    assert len(report.layers) == 5 * 7
    assert all(one.isfinite().all() for one in model(**calls()[0]))


@pytest.mark.parametrize("recipe", LEARNING)
def test_what_never_ran_is_rounded_plainly_and_told(recipe):
    _, report = quantized(recipe)
    told = [line.split(" ")[0] for line in report.warnings if "never reached" in line]
    idle = {f"{block}.idle" for block in ("first.0", "first.1", "second.0", "second.1")}
    assert set(told) == idle | {f"first.2.{path}" for path in ROLES}
    assert len(told) == len(set(told))
    measured = {layer.name for layer in report.layers if layer.output_db is not None}
    assert measured == {layer.name for layer in report.layers} - set(told)


@pytest.mark.parametrize("kind", ["causal", "grouped", "one by one", "twice"])
@pytest.mark.parametrize("recipe", ["fp4dit", "tq-dit"])
def test_odd_attentions_stay_and_are_told(recipe, kind):
    model, report = quantized(recipe, kind)
    told = [line for line in report.warnings if "matmuls of" in line]
    assert {line.split(" ")[3] for line in told} >= {"first.0.attn", "second.1.attn"}
    assert all(one.isfinite().all() for one in model(**calls()[0]))


def test_blocks_are_solved_in_the_order_in_which_they_run():
    _, report = quantized("hq-dit")
    order = list(dict.fromkeys(".".join(one.name.split(".")[:2]) for one in report.layers))
    assert order == ["first.0", "second.0", "first.1", "second.1", "first.2"]


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def solve(job, settings):
        if job.name == "second.1":
            raise Stop
        hq_dit.solve(job, settings)

    stopping = replace(hq_dit.METHOD, solve=solve)
    given = {"spec": SPEC, "calibration": calls(), "workdir": tmp_path, "progress": False}
    with pytest.raises(Stop):
        fewbit.quantize(Odd(), stopping, **given)
    whole, _ = quantized("hq-dit")
    again, _ = quantized("hq-dit", workdir=tmp_path)
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_items_that_the_forward_cannot_take_are_told():
    wrong = {**calls()[0], "latents": [torch.randn(6, 31), torch.randn(6, 31)]}
    model = Odd()
    with pytest.raises(BadCalibration, match=r"forward of Odd does not run on .* RuntimeError: "):
        fewbit.quantize(model, "hq-dit", spec=SPEC, calibration=[wrong], progress=False)
    assert isinstance(model.first[0].up, nn.Linear)
    assert not any(module._forward_pre_hooks for module in model.modules())
