"""Other implementations of attention and of the losses, each a function of heddle's tensors, for benchmark.py.

Each function returns nothing (None) where the package is not there or the peer cannot do what the options ask for.
    torch_flash, torch_cudnn   scaled_dot_product_attention of PyTorch with that backend
    fla                        simple_gla of flash-linear-attention: chunks, and one token by fused_recurrent_simple_gla
    mlstm                      xl_chunk_siging of mlstm-kernels, whose forget gate is a decay for each token
    torch, torch_compile       F.cross_entropy, of F.linear in the second suite
    liger                      fused linear cross entropy
"""

import torch
import torch.nn.functional as F


def sdpa(backend_name, options, inputs):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, backend_name)
    queries, keys = inputs["q"].shape[1], inputs["k"].shape[1]
    causal = options.get("causal", True)
    if "segments" in inputs or options.get("window", 0) or (causal and queries not in (1, keys)):
        return None
    group = inputs["q"].shape[2] != inputs["k"].shape[2]

    def attend(t):
        q, k, v = (t[name].transpose(1, 2) for name in ("q", "k", "v"))
        with sdpa_kernel(backend):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=causal and queries > 1, scale=options.get("scale"),
                                               enable_gqa=group)
        return (o.transpose(1, 2),)

    return attend


def fla(options, inputs):
    try:
        from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
    except ImportError:
        return None
    if "segments" in inputs or inputs["q"].shape[2] != inputs["k"].shape[2]:
        return None
    function = fused_recurrent_simple_gla if inputs["q"].shape[1] == 1 else chunk_simple_gla
    decay = {"none": None, "constant": "g_gamma", "learned": "g_gamma", "data": "g"}[options.get("decay", "none")]
    final = options.get("return_final_state", True)

    def attend(t):
        decays = {decay: t["log_decay"]} if decay else {}
        o, state = function(t["q"], t["k"], t["v"], scale=options.get("scale", 1.0),
                            initial_state=t.get("initial_state"), output_final_state=final, **decays)
        return (o, state) if final else (o,)

    return attend


def mlstm(options, inputs):
    """With the input gate open and no normalizer: S_n = sigmoid(f_n) S_{n-1} + k_n v_n^T."""
    try:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging import mlstm_siging_chunkwise__xl_chunk
    except ImportError:
        return None
    if options.get("decay") != "data" or "segments" in inputs or inputs["q"].shape[1] == 1:
        return None
    decay = torch.exp(inputs["log_decay"].detach()).clamp(1e-6, 1.0 - 1e-6)
    forget = torch.logit(decay).transpose(1, 2).contiguous().to(inputs["q"].dtype)
    open_gate = torch.full_like(forget, 20.0)

    def attend(t):
        q, k, v = (t[name].transpose(1, 2).contiguous() for name in ("q", "k", "v"))
        return (mlstm_siging_chunkwise__xl_chunk(q, k, v, open_gate, forget, normalize=False),)

    return attend


def cross_entropy(options, inputs):
    if options.get("z_loss", 0.0):
        return None

    def loss(t):
        logits = t["logits"] if "logits" in t else F.linear(t["x"], t["weight"])
        return (F.cross_entropy(logits.flatten(0, -2), t["targets"].flatten(),
                                ignore_index=options.get("ignore_index", -100),
                                label_smoothing=options.get("label_smoothing", 0.0),
                                reduction=options.get("reduction", "mean")),)

    return loss


def liger_linear_cross_entropy(options, inputs):
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    module = LigerFusedLinearCrossEntropyLoss(ignore_index=options.get("ignore_index", -100),
                                              lse_square_scale=options.get("z_loss", 0.0),
                                              label_smoothing=options.get("label_smoothing", 0.0),
                                              reduction=options.get("reduction", "mean"))
    return lambda t: (module(t["weight"], t["x"].flatten(0, -2), t["targets"].flatten()),)


def providers(name, options, inputs):
    """Each (provider, function of the inputs that gives a tuple of outputs)."""
    if name == "softmax_attention":
        candidates = [("torch_flash", sdpa("FLASH_ATTENTION", options, inputs)),
                      ("torch_cudnn", sdpa("CUDNN_ATTENTION", options, inputs))]
    elif name == "linear_attention":
        candidates = [("fla", fla(options, inputs)), ("mlstm", mlstm(options, inputs))]
    elif name in ("cross_entropy", "linear_cross_entropy"):
        eager = cross_entropy(options, inputs)
        candidates = [("torch", eager), ("torch_compile", eager and torch.compile(eager, dynamic=False))]
        if name == "linear_cross_entropy":
            candidates.append(("liger", liger_linear_cross_entropy(options, inputs)))
    else:
        candidates = []
    return [(provider, operator) for provider, operator in candidates if operator is not None]
