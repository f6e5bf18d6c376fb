import json

import numpy as np
import pytest
import torch
from PIL import Image

from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.clip import ClipScore, _middle, _normalized, _whole, refuse_without_words

WORDS = ["<|startoftext|>", "<|endoftext|>", "red", "star", "blue"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CLIP of random weights and five words, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 5, "max_position_embeddings": 8, "bos_token_id": 0,
                     "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "red"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=WORDS[1], eos_token=WORDS[1], model_max_length=8
    ).save_pretrained(folder)
    return folder


def test_it_is_the_cosine_of_the_two_embeddings(weights, pictures):
    from transformers import CLIPImageProcessor, CLIPModel

    metric = ClipScore("clip", str(weights))
    drawn = pictures(3, 24, 32)
    model = CLIPModel.from_pretrained(weights)
    try:
        processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
        images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in drawn]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
    except ImportError:
        pytest.skip("transformers' own preparation needs torchvision here")
    ours = torch.stack([_normalized(_middle(one, 16)) for one in drawn])
    # up to a rounding of one level of 255 in the resampling, in units of CLIP's deviation
    torch.testing.assert_close(ours, pixels, rtol=0, atol=1.5 / 255 / 0.26)
    ids = torch.tensor([[2, 3], [4, 3], [3, 4]])
    with torch.no_grad():
        said = model(pixel_values=pixels, input_ids=ids)
    cosine = torch.cosine_similarity(said.image_embeds, said.text_embeds)
    found = metric.measure(drawn, ["red star", "blue star", "star blue"])
    assert found == pytest.approx((100 * cosine).clamp(min=0).tolist(), abs=0.5)


def test_its_name_and_origin_are_kept(weights):
    metric = ClipScore("hpsv2", str(weights))
    assert metric.name == "HPSv2"
    assert metric.resize == "bicubic and padded to 16x16"
    clip = ClipScore("clip", str(weights))
    assert clip.resize == "bicubic and cropped to 16x16"
    assert metric.weights_sha256 == clip.weights_sha256


def test_hpsv2_sees_the_whole_picture_and_clip_its_middle():
    picture = torch.full((3, 8, 16), 200, dtype=torch.uint8)
    picture[:, :, :4] = picture[:, :, 12:] = 100  # beyond the middle square
    middle, whole = (np.asarray(fit(picture, 8)) for fit in (_middle, _whole))
    assert middle.shape == whole.shape == (8, 8, 3)
    assert middle.min() == 200
    assert (whole[:2] == 0).all()
    assert (whole[6:] == 0).all()
    assert (np.abs(whole[2:6, [0, 7]] - 100.0) < 3).all()  # bicubic overshoots a little
    assert (np.abs(whole[2:6, [3, 4]] - 200.0) < 3).all()


def test_scores_do_not_depend_on_the_company(weights, pictures):
    metric = ClipScore("clip", str(weights))
    drawn, asked = pictures(20, 16, 16), ["red star", "blue"] * 10
    together = metric.measure(drawn, asked)
    alone = [metric.measure(drawn[i : i + 1], asked[i : i + 1])[0] for i in range(20)]
    assert together == pytest.approx(alone, abs=1e-3)


def test_missing_weights_say_what_to_put_where(tmp_path, weights):
    sentence = r"no CLIP score weights at .*gone; give --clip a folder of a transformers CLIPModel"
    with pytest.raises(BrokenFile, match=sentence):
        ClipScore("clip", str(tmp_path / "gone"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BrokenFile, match=r"no HPSv2 weights at .*give --hpsv2 the published HPS"):
        ClipScore("hpsv2", str(tmp_path))


def test_classes_without_names_cannot_be_judged_by_words(pipe):
    refuse_without_words(pipe, "clip")

    class Nameless:
        def __call__(self, class_labels): ...

    with pytest.raises(BadArgument, match="--clip judges pictures by words, and the classes of"):
        refuse_without_words(Nameless(), "clip")

    class Reader:
        def __call__(self, prompt): ...

    refuse_without_words(Reader(), "clip")
