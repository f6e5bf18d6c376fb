"""Tiny random pipelines of the models of the day: text encoders, tokenizer, VAE and scheduler
included, each made by one short function and small enough to draw within a second."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from benchmarks.tiny_classes import CLASSES, HEADS

WIDTH = 32  # of all text encoders
PIPELINES: dict[str, Callable[[], Any]] = {}
SIZE = {"height": 32, "width": 32}
CALLS: dict[str, dict[str, Any]] = {}  # what a pipeline needs to be told to be quick


def pipeline(**call: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function that makes a pipeline, with what its call is told."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        PIPELINES[make.__name__] = make
        CALLS[make.__name__] = {**SIZE, **call}
        return make

    return register


def make(name: str) -> Any:
    """The same pipeline each time, quiet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenizer(length: int = 16) -> Any:
    """Every byte is a token."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )
    found.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return found


TEXTS = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def t5(kind: str = "T5EncoderModel", width: int = WIDTH) -> Any:
    config = transformers.T5Config if kind == "T5EncoderModel" else transformers.UMT5Config
    return getattr(transformers, kind)(
        config(
            **TEXTS,
            d_model=width,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def clip(projected: bool = False, width: int = WIDTH) -> Any:
    config = transformers.CLIPTextConfig(
        **TEXTS,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=77,
    )
    if projected:
        return transformers.CLIPTextModelWithProjection(config)
    return transformers.CLIPTextModel(config)


LANGUAGE = {
    **TEXTS,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def qwen3(layers: int = 2, causal: bool = False) -> Any:
    config = transformers.Qwen3Config(**LANGUAGE, num_hidden_layers=layers)
    return transformers.Qwen3ForCausalLM(config) if causal else transformers.Qwen3Model(config)


def gemma2() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(**LANGUAGE, num_hidden_layers=2))


def vae(levels: int = 2) -> Any:
    """With two levels two times two pixels make a latent."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        shift_factor=0.1,
    )


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def network(name: str, **other: Any) -> Any:
    """A tiny transformer with other settings than the table of all classes has."""
    return filled(getattr(diffusers, name)(**{**CLASSES[name].config, **other}))


def filled(model: Any) -> Any:
    """With random matrices: some classes leave them empty, or zero, so that blocks do nothing."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@pipeline(num_frames=5)
def wan_2_2() -> Any:
    """Two experts: one for much noise, one for little."""
    wan = "WanTransformer3DModel"
    return diffusers.WanPipeline(
        tokenizer(64),
        t5("UMT5EncoderModel"),
        wan_vae(),
        diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        network(wan, text_dim=WIDTH),
        network(wan, text_dim=WIDTH),
        boundary_ratio=0.9,
    )


@pipeline()
def flux() -> Any:
    return diffusers.FluxPipeline(
        flow(use_dynamic_shifting=True),
        vae(),
        clip(),
        tokenizer(77),
        t5(),
        tokenizer(),
        filled(
            diffusers.FluxTransformer2DModel(
                **HEADS,
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
            )
        ),
    )


@pipeline(text_encoder_out_layers=(1, 2, 3), max_sequence_length=32)
def flux_2_klein() -> Any:
    coder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return diffusers.Flux2KleinPipeline(
        flow(use_dynamic_shifting=True),
        coder,
        qwen3(layers=3, causal=True),
        tokenizer(32),
        network("Flux2Transformer2DModel", in_channels=16, joint_attention_dim=3 * WIDTH),
    )


@pipeline()
def chroma() -> Any:
    return diffusers.ChromaPipeline(
        flow(),
        vae(),
        t5(),
        tokenizer(),
        network("ChromaTransformer2DModel", in_channels=16, joint_attention_dim=WIDTH),
    )


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


VISION = {
    "depth": 1,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "type": "mrope"}


@pipeline(max_sequence_length=64, negative_prompt=" ")
def qwen_image() -> Any:
    """Its encoder of texts is one of pictures, too."""
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={**LANGUAGE, "num_hidden_layers": 2, "rope_scaling": ROPE},
            vision_config=VISION,
        )
    )
    return diffusers.QwenImagePipeline(
        flow(use_dynamic_shifting=True),
        qwen_vae(),
        encoder,
        tokenizer(2048),
        network("QwenImageTransformer2DModel", joint_attention_dim=WIDTH),
    )


@pipeline(max_sequence_length=32)
def z_image() -> Any:
    return diffusers.ZImagePipeline(
        flow(use_dynamic_shifting=True),
        vae(),
        qwen3(),
        tokenizer(32),
        network("ZImageTransformer2DModel", cap_feat_dim=WIDTH, axes_lens=[512, 128, 128]),
    )


@pipeline(max_sequence_length=16)
def stable_diffusion_3_5() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    clips = [clip(projected=True), clip(projected=True)]
    return diffusers.StableDiffusion3Pipeline(
        filled(transformer),
        flow(),
        vae(),
        clips[0],
        tokenizer(77),
        clips[1],
        tokenizer(77),
        t5(width=2 * WIDTH),
        tokenizer(),
    )


@pipeline(max_sequence_length=16, complex_human_instruction=None)
def sana() -> Any:
    coder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.5,
    )
    return diffusers.SanaPipeline(
        tokenizer(16),
        gemma2(),
        coder,
        network("SanaTransformer2DModel", caption_channels=WIDTH, sample_size=16),
        diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


@pipeline(height=64, width=64, max_sequence_length=16)
def lumina_2() -> Any:
    transformer = network(
        "Lumina2Transformer2DModel", cap_feat_dim=WIDTH, axes_lens=(256, 32, 32), sample_size=16
    )
    coder = vae(levels=4)
    return diffusers.Lumina2Pipeline(transformer, flow(), coder, gemma2(), tokenizer(16))


@pipeline(max_sequence_length=16)
def pixart_sigma() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer(), t5(), vae(), filled(transformer), diffusers.DPMSolverMultistepScheduler()
    )


@pipeline(height=64, width=64)
def hunyuan_dit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=32,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
    )
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=260,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    )
    return diffusers.HunyuanDiTPipeline(
        vae(levels=4),
        bert,
        tokenizer(77),
        filled(transformer),
        diffusers.DDPMScheduler(),
        None,
        None,
        requires_safety_checker=False,
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(256),
    )


@pipeline(num_frames=9, max_sequence_length=16)
def ltx() -> Any:
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
    )
    return diffusers.LTXPipeline(
        flow(use_dynamic_shifting=True),
        coder,
        t5(),
        tokenizer(),
        network(
            "LTXVideoTransformer3DModel", in_channels=4, out_channels=4, caption_channels=WIDTH
        ),
    )


@pipeline(num_frames=5)
def hunyuan_video_1_5() -> Any:
    encoder = transformers.Qwen2_5_VLTextModel(
        transformers.Qwen2_5_VLTextConfig(**LANGUAGE, num_hidden_layers=4, rope_scaling=ROPE)
    )
    coder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    transformer = network(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
    )
    return diffusers.HunyuanVideo15Pipeline(
        encoder,
        tokenizer(2048),
        transformer,
        coder,
        flow(),
        t5(),
        tokenizer(256),
        diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )


@pipeline(max_sequence_length=32)
def krea_2() -> Any:
    encoder = transformers.Qwen3VLModel(
        transformers.Qwen3VLConfig(
            text_config={**LANGUAGE, "num_hidden_layers": 3, "rope_scaling": ROPE},
            vision_config={**VISION, "deepstack_visual_indexes": [0]},
        )
    )
    return diffusers.Krea2Pipeline(
        flow(use_dynamic_shifting=True),
        qwen_vae(),
        encoder,
        tokenizer(2048),
        network("Krea2Transformer2DModel", in_channels=16, text_hidden_dim=WIDTH),
        text_encoder_select_layers=(1, 2, 3),
    )


@pipeline(max_sequence_length=16)
def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=4096,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer(), t5("UMT5EncoderModel"), vae(), filled(transformer), flow()
    )


@pipeline(num_frames=5)
def cogvideox() -> Any:
    coder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=32,
        sample_width=32,
    )
    transformer = network(
        "CogVideoXTransformer3DModel",
        text_embed_dim=WIDTH,
        max_text_seq_length=226,
        sample_width=4,
        sample_height=4,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer(), t5(), coder, transformer, diffusers.CogVideoXDDIMScheduler()
    )
