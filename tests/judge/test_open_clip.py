"""HPSv2 as it is published: a checkpoint with weights under open_clip's names."""

import json
import string

import pytest
import torch
import torch.nn.functional as F

from fewbit.errors import BrokenFile
from fewbit.judge.clip import ClipScore
from fewbit.judge.open_clip import HEAD, WIDE_HEADS, _tower

pytest.importorskip("transformers")

LETTERS = string.ascii_lowercase
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>",
         "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
VISION = {"width": 128, "depth": 2, "heads": 2}
TEXT = {"width": 64, "depth": 3, "heads": 1}
PATCH, GRID, LENGTH, JOINT = 4, 3, 8, 24


def random_tower(side, width, depth, draw):
    state = {}
    for number in range(depth):
        home = f"{side}transformer.resblocks.{number}"
        state |= {
            f"{home}.ln_1.weight": 1 + draw(width), f"{home}.ln_1.bias": draw(width),
            f"{home}.ln_2.weight": 1 + draw(width), f"{home}.ln_2.bias": draw(width),
            f"{home}.attn.in_proj_weight": draw(3 * width, width),
            f"{home}.attn.in_proj_bias": draw(3 * width),
            f"{home}.attn.out_proj.weight": draw(width, width),
            f"{home}.attn.out_proj.bias": draw(width),
            f"{home}.mlp.c_fc.weight": draw(4 * width, width),
            f"{home}.mlp.c_fc.bias": draw(4 * width),
            f"{home}.mlp.c_proj.weight": draw(width, 4 * width),
            f"{home}.mlp.c_proj.bias": draw(width),
        }  # fmt: skip
    return state


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    wide, narrow = VISION["width"], TEXT["width"]
    return {
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": draw(wide),
        "visual.conv1.weight": draw(wide, 3, PATCH, PATCH),
        "visual.positional_embedding": draw(GRID**2 + 1, wide),
        "visual.ln_pre.weight": 1 + draw(wide), "visual.ln_pre.bias": draw(wide),
        "visual.ln_post.weight": 1 + draw(wide), "visual.ln_post.bias": draw(wide),
        "visual.proj": draw(wide, JOINT),
        "token_embedding.weight": draw(len(WORDS), narrow),
        "positional_embedding": draw(LENGTH, narrow),
        "ln_final.weight": 1 + draw(narrow), "ln_final.bias": draw(narrow),
        "text_projection": draw(narrow, JOINT),
        **random_tower("visual.", wide, VISION["depth"], draw),
        **random_tower("", narrow, TEXT["depth"], draw),
    }  # fmt: skip


def write_words(folder):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")


@pytest.fixture(scope="module")
def published(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("hpsv2")
    torch.save({"iterations": 4000, "state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    write_words(folder)
    return folder / "HPS_v2.1_compressed.pt"


def normed(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def tower(x, state, side, heads, depth, hidden):
    """Pre-norm blocks: all three projections of the attention in one product, the exact GELU."""
    for number in range(depth):
        home = f"{side}transformer.resblocks.{number}"
        seen = normed(x, state, f"{home}.ln_1")
        fused = seen @ state[f"{home}.attn.in_proj_weight"].T + state[f"{home}.attn.in_proj_bias"]
        rows, tokens, width = x.shape
        q, k, v = fused.view(rows, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5 + hidden
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, tokens, width)
        weight, bias = (state[f"{home}.attn.out_proj.{kind}"] for kind in ("weight", "bias"))
        x = x + F.linear(mixed, weight, bias)
        seen = normed(x, state, f"{home}.ln_2")
        inner = F.linear(seen, state[f"{home}.mlp.c_fc.weight"], state[f"{home}.mlp.c_fc.bias"])
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        weight, bias = (state[f"{home}.mlp.c_proj.{kind}"] for kind in ("weight", "bias"))
        x = x + F.linear(inner, weight, bias)
    return x


def pictures_embedded(pixels, state):
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + state["visual.positional_embedding"]
    x = normed(x, state, "visual.ln_pre")
    x = tower(x, state, "visual.", VISION["heads"], VISION["depth"], 0.0)
    return normed(x[:, 0], state, "visual.ln_post") @ state["visual.proj"]


def words_embedded(ids, state):
    """A token sees those before it; the last one, whose number is the highest, speaks for all."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    future = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    x = tower(x, state, "", TEXT["heads"], TEXT["depth"], future)
    x = normed(x, state, "ln_final")
    return x[torch.arange(len(ids)), ids.argmax(1)] @ state["text_projection"]


def test_the_embeddings_are_those_of_the_published_network(published, state):
    model = ClipScore("hpsv2", str(published)).model
    pixels = torch.randn(
        3, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1)
    )
    ids = torch.tensor([[54, 53, 26, 55], [54, 30, 55, 55], [54, 55, 55, 55]])
    with torch.no_grad():
        said = model(pixel_values=pixels, input_ids=ids)
    for ours, theirs in (
        (said.image_embeds, pictures_embedded(pixels, state)),
        (said.text_embeds, words_embedded(ids, state)),
    ):
        torch.testing.assert_close(ours, F.normalize(theirs), rtol=0, atol=1e-5)


def test_a_whole_picture_is_scored_by_the_cosine_with_its_words(published, state, pictures):
    metric = ClipScore("hpsv2", str(published))
    drawn = pictures(2, 6, 12)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    square = F.pad(drawn / 255, (0, 0, 3, 3))
    seen = pictures_embedded((square - mean) / deviation, state)
    said = words_embedded(torch.tensor([[54, 53, 26, 55], [54, 53, 27, 55]]), state)
    cosine = 100 * torch.cosine_similarity(seen, said).clamp(min=0)
    assert metric.measure(drawn, ["Red a", "red  b"]) == pytest.approx(cosine.tolist(), abs=1e-3)
    long = metric.measure(drawn[:1], ["red " * 50])
    assert long == metric.measure(drawn[:1], ["red " * (LENGTH - 2)])


def test_a_folder_that_holds_the_file_does_as_well(published):
    by_file, by_folder = (ClipScore("hpsv2", str(place)) for place in (published, published.parent))
    assert by_file.weights_sha256 == by_folder.weights_sha256
    assert by_file.resize == "bicubic and padded to 12x12"


def test_the_hub_cache_is_looked_through(published, monkeypatch):
    import huggingface_hub

    def cached(repository, name):
        known = repository == "xswu/HPSv2" and name == published.name
        return str(published) if known else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert ClipScore("hpsv2", "xswu/HPSv2").name == "HPSv2"
    with pytest.raises(
        BrokenFile, match="no HPSv2 weights at xswu/other; give --hpsv2 the publish"
    ):
        ClipScore("hpsv2", "xswu/other")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 and then nothing"])
def test_a_broken_file_is_named(tmp_path, content):
    file = tmp_path / "HPS_v2_compressed.pt"
    file.write_bytes(content)
    with pytest.raises(BrokenFile, match=r"HPS_v2_compressed\.pt holds no readable weights; give"):
        ClipScore("hpsv2", str(file))


def altered(state, change):
    other = dict(state)
    change(other)
    return other


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("visual.conv1.weight"), r"no CLIP as open_clip names it \('visual.conv1"),
        (lambda s: s.pop("ln_final.bias"), r"no whole CLIP \(it has no text_model.final_layer"),
        (lambda s: s.update(head=torch.zeros(2)), r"no CLIP as open_clip names it \('head'\)"),
        (lambda s: s.update({"visual.proj": torch.zeros(7, JOINT)}), "no CLIP as open_clip names"),
    ],
)
def test_another_network_is_refused(tmp_path, state, change, sentence):
    torch.save({"state_dict": altered(state, change)}, tmp_path / "other.pt")
    write_words(tmp_path)
    with pytest.raises(BrokenFile, match=sentence):
        ClipScore("hpsv2", str(tmp_path / "other.pt"))


def test_code_in_the_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(BrokenFile, match=r"bomb\.pt holds no readable weights"):
        ClipScore("hpsv2", str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "ran").exists()


def test_a_missing_vocabulary_says_what_to_put_where(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "HPS_v2_compressed.pt")
    sentence = r"no vocabulary of 56 words for the weights in .*put CLIP's vocab\.json and merges"
    with pytest.raises(BrokenFile, match=sentence):
        ClipScore("hpsv2", str(tmp_path))


def test_heads_of_the_large_vision_towers_are_wider():
    state = {f"visual.transformer.resblocks.{n}.mlp.c_fc.weight": torch.empty(5, 1) for n in (0, 1)}
    towers = {
        width: _tower(state, "visual.", width, WIDE_HEADS.get(width, HEAD))
        for width in (768, 1024, 1280, 1408, 1664)
    }
    heads = {width: tower["num_attention_heads"] for width, tower in towers.items()}
    assert heads == {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
    assert towers[1280]["num_hidden_layers"] == 2
    assert towers[1280]["intermediate_size"] == 5
