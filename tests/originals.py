"""Tiny models under the names that their authors published them with, which diffusers' converters
read."""

import torch

PREFIX = "model.diffusion_model."  # of files for ComfyUI
WAN = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    ".norm2.": ".norm3.",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "net.0.proj": "0",
    "net.2": "2",
    "proj_out": "head.head",
    "scale_shift_table": "modulation",
}
LTX = {
    "proj_in": "patchify_proj",
    "time_embed.": "adaln_single.",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
    "to_out.0": "out",
}


def renamed(model, names):
    found = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name] = tensor.clone()
    return found


def wan(model):
    tensors = renamed(model, WAN)
    tensors["head.modulation"] = tensors.pop("modulation")
    return tensors


def ltx(model):
    return {PREFIX + name: tensor for name, tensor in renamed(model, LTX).items()}


def z_image(model):
    """With queries, keys and values in one matrix."""
    tensors = renamed(model, Z_IMAGE)
    for name in [name for name in tensors if name.endswith("to_q.weight")]:
        parts = [tensors.pop(name.replace("to_q", f"to_{operand}")) for operand in "qkv"]
        tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


ORIGINALS = {
    "WanTransformer3DModel": wan,
    "LTXVideoTransformer3DModel": ltx,
    "ZImageTransformer2DModel": z_image,
    "QwenImageTransformer2DModel": lambda model: renamed(model, {}),
}
