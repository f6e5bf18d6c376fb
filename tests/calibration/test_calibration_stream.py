"""A stream shows each block what plain hooks see on the whole model, bit for bit."""

from pathlib import Path

import pytest
import torch
from small_models import FAMILIES, arguments, blocks_of, make
from torch import nn
from torch.testing import assert_close

from fewbit.calibration import BlockStream, RowSet
from fewbit.calibration.tree import tensors
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.storage.entries import Entries

ROWS, BATCH = 5, 2


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def dit():
    return make("DiTTransformer2DModel")


def stream_of(model, family="DiTTransformer2DModel", blocks=None, **options):
    data = RowSet.from_items([arguments(family, ROWS)])
    options = {"batch": BATCH} | options
    return BlockStream(model, blocks_of(model) if blocks is None else blocks, data, **options)


def hooked(model, data, batch=BATCH):
    """Per block, what a plain hook sees of each minibatch; and the model's results."""
    seen = [[] for _ in blocks_of(model)]
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, at=at: at.append(copied((args, kwargs))), with_kwargs=True
        )
        for block, at in zip(blocks_of(model), seen, strict=True)
    ]
    with torch.no_grad():
        results = [copied(model(**inputs)) for inputs in data.batches(batch)]
    for hook in hooks:
        hook.remove()
    return seen, results


def copied(tree):
    return {path: tensor.clone() for path, tensor in tensors(tree).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def seen_by(step):
    return [copied((call.args, call.kwargs)) for call in step.inputs()]


def disturb(block):
    """Doing it twice is not doing it once. Embedders stay: a DiT's tail reads them, too."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if ".emb." not in name:
                parameter.mul_(1.25).add_(0.01)


def walk(stream, change=None, first=0):
    """What the blocks saw in the stream, each changed before it advances."""
    seen = []
    for step in stream.steps(first):
        seen.append(seen_by(step))
        if change:
            change(step.block)
    return seen, [copied(result) for result in stream.results()]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for minibatches, expected in zip(mine, theirs, strict=True):
        assert len(minibatches) == len(expected) == 3
        assert all(map(same, minibatches, expected))


def test_blocks_see_what_hooks_see(family):
    model = make(family)
    stream = stream_of(model, family)
    seen, results = hooked(model, stream.data)
    mine, outcome = walk(stream)
    assert_same(mine, seen)
    assert all(map(same, outcome, results))
    assert len(outcome) == len(results) == 3


def test_a_changed_block_changes_what_later_blocks_see(family):
    model, twin = make(family), make(family)
    stream = stream_of(model, family)
    mine, outcome = walk(stream, disturb)
    for block in blocks_of(twin):
        disturb(block)
    seen, results = hooked(twin, stream.data)
    plain, _ = hooked(make(family), stream.data)
    assert_same(mine, seen)
    assert all(map(same, outcome, results))
    assert not same(mine[-1][0], plain[-1][0])


def test_advancing_before_the_change_keeps_the_full_precision_inputs(family):
    model = make(family)
    stream = stream_of(model, family)
    seen, results = hooked(model, stream.data)
    mine = []
    for step in stream.steps():
        step.advance()
        disturb(step.block)
        mine.append(seen_by(step))
    assert_same(mine, seen)
    assert all(map(same, map(copied, stream.results()), results))


def test_two_streams_walk_in_lockstep_over_one_model(dit):
    clean, noisy = stream_of(dit), stream_of(dit)
    seen, _ = hooked(dit, clean.data)
    for full, quantized in zip(clean.steps(), noisy.steps(), strict=True):
        targets = [output.clone() for output in full.outputs()]
        full.advance()
        assert all(same(a, b) for a, b in zip(seen_by(full), seen[full.index], strict=True))
        assert full.index == 0 or not same(seen_by(quantized)[0], seen[full.index][0])
        disturb(quantized.block)
        assert not torch.equal(targets[0], next(quantized.outputs()))


def test_only_outputs_that_are_still_read_wait():
    held = {}
    for family in ("DiTTransformer2DModel", "HunyuanDiT2DModel"):
        stream = stream_of(make(family), family)
        held[family] = [sorted(stream.outputs.blocks) for _ in stream.steps()]
        held[family].append(sorted(stream.outputs.blocks))
    assert held["DiTTransformer2DModel"] == [[], [0], [1], [2], [3]]
    # blocks 4 and 5 of six join the outputs of blocks 1 and 0
    assert held["HunyuanDiT2DModel"] == [[], [0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 4], [5]]


def test_outputs_may_wait_in_half_precision(dit):
    exact, _ = walk(stream_of(dit))
    stream = stream_of(dit, store=torch.bfloat16)
    rounded, _ = walk(stream)
    hidden = "0.0"
    for block in range(1, 4):
        before, after = exact[block][0][hidden], rounded[block][0][hidden]
        assert after.dtype == torch.float32
        assert not torch.equal(before, after)
        # bfloat16 keeps 8 bits; a few roundings add up, and signals here are of size one
        assert_close(after, before, rtol=2**-6, atol=2**-6)


class Killed(Exception):
    pass


@pytest.mark.parametrize("family", ["DiTTransformer2DModel", "HunyuanDiT2DModel"])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("moment", ["before the change", "while advancing"])
def test_a_killed_walk_goes_on_to_the_same_bits(family, at, moment, tmp_path: Path):
    whole, results = walk(stream_of(make(family), family), disturb)

    model = make(family)
    stream = stream_of(model, family, workdir=Entries(tmp_path))

    def kill(*_):
        raise Killed

    with pytest.raises(Killed):  # noqa: PT012
        for step in stream.steps():
            if step.index == at and moment == "before the change":
                kill()
            disturb(step.block)
            if step.index == at:
                calls = iter([lambda: None, kill])
                step.block.register_forward_hook(lambda *_, calls=calls: next(calls)())

    model = make(family)  # in a new process
    for block in blocks_of(model)[:at]:
        disturb(block)
    resumed = stream_of(model, family, workdir=Entries(tmp_path))
    assert resumed.ready() == at
    mine, outcome = walk(resumed, disturb, first=resumed.ready())
    assert_same(mine, whole[at:])
    assert all(map(same, outcome, results))


def test_a_block_written_down_but_not_advanced_is_only_run(dit, tmp_path: Path):
    whole, results = walk(stream_of(make("DiTTransformer2DModel")), disturb)
    for step in stream_of(dit, workdir=Entries(tmp_path)).steps():
        disturb(step.block)
        if step.index == 2:
            break
    stream = stream_of(dit, workdir=Entries(tmp_path))
    assert stream.ready() == 2
    for step in stream.steps(2):
        assert all(map(same, seen_by(step), whole[step.index]))
        if step.index > 2:
            disturb(step.block)
    assert all(map(same, map(copied, stream.results()), results))


def test_other_data_or_another_batch_never_resumes(dit, tmp_path: Path):
    walk(stream_of(dit, workdir=Entries(tmp_path)))
    assert stream_of(dit, workdir=Entries(tmp_path)).ready() == 4
    assert stream_of(dit, workdir=Entries(tmp_path), batch=3).ready() == 0
    assert stream_of(dit, workdir=Entries(tmp_path), store=torch.float16).ready() == 0
    other = RowSet.from_items([arguments("DiTTransformer2DModel", ROWS, seed=1)])
    assert (
        BlockStream(dit, blocks_of(dit), other, batch=BATCH, workdir=Entries(tmp_path)).ready() == 0
    )


def test_layers_report_their_inputs_and_rows(dit):
    stream = stream_of(dit)
    step = next(iter(stream.steps()))
    heard = []
    step.layer_inputs(["norm1.linear", "attn1.to_q", "ff.net.2"], heard.append)
    assert [layer.name for layer in heard] == ["norm1.linear", "attn1.to_q", "ff.net.2"] * 3
    assert [layer.rows.indices for layer in heard[::3]] == [range(2), range(2, 4), range(4, 5)]
    times = torch.cat([layer.rows.timesteps for layer in heard[::3]])
    assert torch.equal(times, stream.data.timesteps())
    for layer, call in zip(heard[1::3], step.inputs(), strict=True):
        normal, *_ = step.block.norm1(
            call.args[0], call.kwargs["timestep"], call.kwargs["class_labels"]
        )
        assert torch.equal(layer.x, normal)
        assert layer.mask is None


def test_the_first_minibatches_may_do(dit):
    step = next(iter(stream_of(dit).steps()))
    heard = []
    step.layer_inputs(["attn1.to_q"], heard.append, minibatches=2)
    assert [layer.rows.indices for layer in heard] == [range(2), range(2, 4)]


def test_padding_of_the_text_is_masked_where_the_text_is_read():
    family = "PixArtTransformer2DModel"
    stream = stream_of(make(family), family)
    step = next(iter(stream.steps()))
    heard = []
    step.layer_inputs(["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_k"], heard.append)
    masks = stream.data.columns["encoder_attention_mask"].bool()
    for layer in heard:
        reads_text = layer.name in ("attn2.to_k", "attn2.to_v")
        assert (layer.mask is not None) == reads_text
        if reads_text:
            assert torch.equal(layer.mask, masks[list(layer.rows.indices)])
    assert not masks.all()


def test_padding_that_is_not_a_number_disturbs_nobody():
    family = "PixArtTransformer2DModel"
    model = make(family)
    stream = stream_of(model, family)
    mask = stream.data.columns["encoder_attention_mask"].bool()

    def poison(_, __, text):
        rows = text.reshape(-1, 5, text.shape[-1])
        return torch.where(mask[: len(rows)][..., None], rows, torch.nan)

    model.caption_projection.register_forward_hook(poison)
    stream.parts = stream.parts[:1]
    step = next(iter(stream.steps()))
    step.layer_inputs(["attn2.to_k"], lambda layer: None)


def test_not_a_number_is_told_by_layer_row_and_timestep(dit):
    stream = stream_of(dit)
    with torch.no_grad():
        blocks_of(dit)[1].ff.net[0].proj.bias[3] = torch.inf
    time = stream.data.timesteps()[0]
    names = ["attn1.to_q", "ff.net.0.proj", "ff.net.2"]
    steps = stream.steps()
    next(steps)
    step = next(steps)
    heard = []
    told = rf"ff.net.2 of block 1 receives NaN or infinity in row 0 \(timestep {time:g}\)"
    with pytest.raises(BadCalibration, match=told):
        step.layer_inputs(names, heard.append)
    assert [layer.name for layer in heard] == names[:2]
    with pytest.raises(BadCalibration, match="block 1 gives NaN or infinity in row 0"):
        step.advance()
    assert untouched(dit)


def untouched(model):
    return not any(
        "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks
        for module in model.modules()
    )


def test_nothing_stays_behind(dit):
    dit.train()
    dit.transformer_blocks[2].eval()
    flags = [module.training for module in dit.modules()]
    state = torch.random.get_rng_state()
    stream = stream_of(dit)
    for step in stream.steps():
        assert untouched(dit)
        step.layer_inputs(["attn1.to_q"], lambda layer: None)
    list(stream.results())
    assert untouched(dit)
    assert flags == [module.training for module in dit.modules()]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


def test_nothing_stays_behind_an_exception(dit):
    stream = stream_of(dit)

    def fail(*_):
        raise Killed

    step = next(iter(stream.steps()))
    with pytest.raises(Killed):
        step.layer_inputs(["attn1.to_q"], fail)
    hook = dit.pos_embed.register_forward_pre_hook(fail)
    with pytest.raises(Killed):
        next(step.inputs())
    hook.remove()
    assert untouched(dit)
    own = dit.transformer_blocks[0].forward
    vars(dit.transformer_blocks[0])["forward"] = own
    next(step.inputs())
    assert vars(dit.transformer_blocks[0])["forward"] is own


def test_a_block_can_be_trained_on_its_inputs(dit):
    step = next(iter(stream_of(dit).steps()))
    call = next(step.inputs())
    step.block(*call.args, **call.kwargs).square().mean().backward()
    assert step.block.attn1.to_q.weight.grad is not None


def test_whoever_scribbles_on_an_input_harms_nobody(dit):
    stream = stream_of(dit)
    _, results = hooked(dit, stream.data)
    for step in stream.steps():
        for call in step.inputs():
            call.args[0].add_(1)
    assert all(map(same, map(copied, stream.results()), results))


class Chain(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.blocks, self.order = nn.ModuleList(nn.Linear(3, 3) for _ in range(3)), order

    def forward(self, x):
        for index in self.order:
            x = x + self.blocks[index](x).relu_()
        return x


def chain_stream(order, batch=4):
    chain = Chain(order)
    data = RowSet.from_items([{"x": torch.ones(2, 3)}])
    return chain, BlockStream(chain, list(chain.blocks), data, batch=batch)


def test_any_module_will_do():
    chain, stream = chain_stream([0, 1, 2])
    with torch.no_grad():
        expected = chain(torch.ones(2, 3))
    for _ in stream.steps():
        pass
    assert torch.equal(next(stream.results()), expected)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 2, 1], "ran block 2 as number 1"),
        ([0, 1, 1, 2], "ran block 1 as number 2"),
        ([0, 1], "never ran block 2"),
    ],
)
def test_blocks_out_of_order_are_refused(order, message):
    with pytest.raises(BadModel, match=message):
        chain_stream(order)


def test_bad_arguments_are_named(dit):
    with pytest.raises(BadArgument, match="one block or more"):
        stream_of(dit, blocks=[])
    with pytest.raises(BadArgument, match="int8"):
        stream_of(dit, store=torch.int8)
    with pytest.raises(BadArgument, match="got 0"):
        stream_of(dit, batch=0)
    with pytest.raises(BadArgument, match=r"begin at block 2; allowed: 0$"):
        next(stream_of(dit).steps(2))
    step = next(iter(stream_of(dit).steps()))
    with pytest.raises(BadArgument, match=r"no layer 'attn1.qkv'; it has: .*attn1\.to_q"):
        step.layer_inputs(["attn1.qkv"], lambda layer: None)


def test_what_is_heard_is_what_layers_receive_and_no_more_of_the_block_is_run(dit):
    names, ran = ["attn1.to_q", "norm1.linear"], []
    step = next(stream_of(dit).steps())
    received = {name: [] for name in names}
    step.layer_inputs(names, lambda given: received[given.name].append(given))
    hook = step.block.ff.register_forward_hook(lambda *_: ran.append(1))
    heard = list(step.heard(names))
    hook.remove()
    assert not ran
    assert len(heard) == step.minibatches
    for number, found in enumerate(heard):
        assert found.keys() == set(names)
        for name, given in found.items():
            assert torch.equal(given.x, received[name][number].x)
            assert given.rows.indices == received[name][number].rows.indices


def test_what_is_heard_while_advancing_is_what_is_heard_otherwise(dit):
    names = ["attn1.to_q", "ff.net.2"]
    runs = []
    for step, other in zip(stream_of(dit).steps(), stream_of(dit).steps(), strict=True):
        ran = []
        hook = step.block.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        heard = step.advance(names)
        hook.remove()
        runs.append(len(ran))
        for mine, theirs in zip(heard, other.heard(names), strict=True):
            assert all(torch.equal(mine[name].x, theirs[name].x) for name in names)
        other.advance()
        assert all(map(same, map(copied, step.given()), map(copied, other.given())))
    assert runs == 4 * [step.minibatches]
