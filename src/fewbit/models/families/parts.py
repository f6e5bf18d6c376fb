"""The parts that blocks of diffusers are made of: what each of their linears does."""

from fewbit.models.spec import Role

SELF_ATTENTION = {
    "attn1.to_q": Role.Q,
    "attn1.to_k": Role.K,
    "attn1.to_v": Role.V,
    "attn1.to_out.0": Role.ATTN_OUT,
}
CROSS_ATTENTION = {
    "attn2.to_q": Role.CROSS_Q,
    "attn2.to_k": Role.CROSS_K,
    "attn2.to_v": Role.CROSS_V,
    "attn2.to_out.0": Role.CROSS_OUT,
}
FEED_FORWARD = {"ff.net.0.proj": Role.FC1, "ff.net.2": Role.FC2}
JOINT = {  # an image and a text stream, each with its own linears, in one attention
    "norm1.linear": Role.ADALN,
    "norm1_context.linear": Role.ADALN,
    "attn.to_q": Role.Q,
    "attn.to_k": Role.K,
    "attn.to_v": Role.V,
    "attn.to_out.0": Role.ATTN_OUT,
    "attn.add_q_proj": Role.Q,
    "attn.add_k_proj": Role.K,
    "attn.add_v_proj": Role.V,
    "attn.to_add_out": Role.ATTN_OUT,
    **FEED_FORWARD,
    "ff_context.net.0.proj": Role.FC1,
    "ff_context.net.2": Role.FC2,
}
