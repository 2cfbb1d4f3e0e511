"""What each operator of heddle computes, in PyTorch, written after its formula in docs/layers.md and not for speed.

Each function takes the tensors by name and the options, and returns the outputs by name.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


def activate(x: Tensor, act: str, sequence_dim: int = 1) -> Tensor:
    return {
        "none": lambda: x,
        "relu": lambda: torch.relu(x),
        "sigmoid": lambda: torch.sigmoid(x),
        "silu": lambda: F.silu(x),
        "elu1": lambda: F.elu(x) + 1,
        "relu2": lambda: torch.relu(x).square(),
        "tanh": lambda: torch.tanh(x),
        "gelu": lambda: F.gelu(x),
        "gelu_tanh": lambda: F.gelu(x, approximate="tanh"),
        "softmax_feature": lambda: torch.softmax(x, -1),
        "softmax_sequence": lambda: torch.softmax(x, sequence_dim),
    }[act]()


def norm(layer: str, t: Tensors, options: dict) -> Tensors:
    x = t["x"]
    center = layer in ("layer_norm", "group_norm")
    gate = {"act": "none", "position": "post", **options.get("gate", {})}
    r = x + t["residual"] if "residual" in t else x
    p = r * activate(t["gate"], gate["act"]) if "gate" in t and gate["position"] == "pre" else r
    groups = p.unflatten(-1, (options.get("groups", 1), -1))
    q = groups - groups.mean(-1, keepdim=True) if center else groups
    s = torch.sqrt(q.square().mean(-1, keepdim=True) + options.get("eps", 1e-5))
    y = options.get("scale", 1.0) * (q / s).flatten(-2)
    y = y * t["weight"] if "weight" in t else y
    y = y + t["bias"] if "bias" in t else y
    y = y * activate(t["gate"], gate["act"]) if "gate" in t and gate["position"] == "post" else y
    returns_r = options.get("return_residual", "residual" in t)
    return {"y": y, "r": r} if returns_r else {"y": y}


def heads_first(x: Tensor, options: dict) -> Tensor:
    """x (B, N, H, D) from (B, N, D) with one head, or from (B, H, N, D) by layout."""
    if x.dim() == 3:
        return x.unsqueeze(2)
    return x.transpose(1, 2) if options.get("layout", "bnhd") == "bhnd" else x


def heads_back(y: Tensor, x: Tensor, options: dict) -> Tensor:
    """The inverse of heads_first, for an output of the operator that took x."""
    if x.dim() == 3:
        return y.squeeze(2)
    return y.transpose(1, 2) if options.get("layout", "bnhd") == "bhnd" else y


def lrpe_activate(x: Tensor, options: dict) -> Tensor:
    """x (B, N, H, D)."""
    act = options.get("act", "none")
    return activate(x, f"softmax_{options.get('act_dim', 'feature')}" if act == "softmax" else act)


def lrpe_rotate(layer: str, t: Tensors, options: dict) -> Tensors:
    """x (B, N, H, D) or as heads_first() says, theta (H or 1, E)."""
    a = lrpe_activate(heads_first(t["x"], options), options)
    half = a.shape[-1] // 2
    theta = F.pad(t["theta"], (0, half - t["theta"].shape[-1]))
    positions = torch.arange(a.shape[1], dtype=theta.dtype) + options.get("offset", 0)
    phi = positions[:, None, None] * theta
    if options.get("pairing", "half") == "interleaved":
        low, high = a[..., 0::2], a[..., 1::2]
    else:
        low, high = a[..., :half], a[..., half:]
    first, second = low * phi.cos() - high * phi.sin(), low * phi.sin() + high * phi.cos()
    if options.get("pairing", "half") == "interleaved":
        y = torch.stack((first, second), -1).flatten(-2)
    else:
        y = torch.cat((first, second), -1)
    return {"y": heads_back(y, t["x"], options)}


def grid_angles(theta: Tensor, length: int, dim: int, options: dict) -> Tensor:
    """(N, H or 1, D): 0 for the extra tokens, then s_i * theta[j mod e], i = floor(j / e) + 1, on the grid."""
    extra = options.get("extra_tokens", 0)
    shape = options.get("shape", [length - extra])
    axes = [torch.arange(n, dtype=theta.dtype, device=theta.device) for n in shape]
    coordinates = torch.cartesian_prod(*axes).reshape(-1, len(shape)) + options.get("offset", 0)
    phi = (coordinates[:, None, :, None] * theta[:, None, :]).flatten(-2)[..., :dim]
    return F.pad(phi, (0, 0, 0, 0, extra, 0))


def lrpe_cosine(layer: str, t: Tensors, options: dict) -> Tensors:
    """x (B, N, H, D) or as heads_first() says, theta (H or 1, e): concat(a cos phi, a sin phi)."""
    a = lrpe_activate(heads_first(t["x"], options), options)
    phi = grid_angles(t["theta"], a.shape[1], a.shape[-1], options)
    y = torch.cat((a * phi.cos(), a * phi.sin()), -1)
    return {"y": heads_back(y, t["x"], options)}


def log_sigmoid(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": F.logsigmoid(t["x"]) / options.get("divisor", 1.0)}


def softmax(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": t["x"].unflatten(-1, (options.get("groups", 1), -1)).softmax(-1).flatten(-2)}


def guarded_divide(layer: str, t: Tensors, options: dict) -> Tensors:
    groups = t["x"].unflatten(-1, (t["divisor"].shape[-1], -1))
    # Not clamp(): versions of PyTorch differ in its gradient where the divisor is eps itself.
    guarded = torch.where(t["divisor"] < options["eps"], options["eps"], t["divisor"])
    return {"y": (groups / guarded[..., None]).flatten(-2)}


def linear_attention(layer: str, t: Tensors, options: dict) -> Tensors:
    """q (B, N, H, D), k (B, N, KV, D), v (B, N, KV, Dv), log_decay (H) or (B, N, H): one step a token."""
    q = t["q"]
    batch, length, heads, dim = q.shape
    k, v = (t[name].repeat_interleave(heads // t[name].shape[2], 2) for name in ("k", "v"))
    decay = torch.exp(t["log_decay"]) if "log_decay" in t else torch.ones(heads, dtype=q.dtype)
    decay = decay.expand(batch, length, heads)
    if "segments" in t:
        starts = F.pad(t["segments"].diff(dim=1) != 0, (1, 0))
        decay = decay.masked_fill(starts[:, :, None], 0.0)
    state = t.get("initial_state", torch.zeros(batch, heads, dim, v.shape[-1], dtype=q.dtype))
    outputs = []
    for n in range(length):
        state = decay[:, n, :, None, None] * state + k[:, n, :, :, None] * v[:, n, :, None, :]
        outputs.append(options.get("scale", 1.0) * torch.einsum("bhd,bhde->bhe", q[:, n], state))
    o = torch.stack(outputs, 1)
    return {"o": o, "final_state": state} if options.get("return_final_state", True) else {"o": o}


def softmax_attention(layer: str, t: Tensors, options: dict) -> Tensors:
    """q (B, N, H, D), k (B, M, KV, D), v (B, M, KV, Dv), segments (B, M); query n stands at position M - N + n."""
    q, k, v = (t[name].transpose(1, 2) for name in ("q", "k", "v"))
    group = q.shape[1] // k.shape[1]
    keys = torch.arange(k.shape[2], device=q.device)
    queries = keys.shape[0] - q.shape[2] + torch.arange(q.shape[2], device=q.device)
    distance = queries[:, None] - keys
    sees = torch.ones_like(distance, dtype=torch.bool).expand(q.shape[0], 1, *distance.shape)
    if options.get("causal", True):
        sees = sees & (distance >= 0)
    if options.get("window", 0) > 0:
        sees = sees & (distance < options["window"])
    if "segments" in t:
        segments = t["segments"]
        sees = sees & (segments[:, None, queries, None] == segments[:, None, None, :])
    o = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), sees,
                                       scale=options.get("scale"))
    return {"o": o.transpose(1, 2)}


def linear(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": F.linear(t["x"], t["weight"], t.get("bias"))}


def embedding(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": F.embedding(t["tokens"].long(), t["weight"], padding_idx=options.get("padding_idx"))}


def activation(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": activate(t["x"], options["act"])}


def glu_product(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": activate(t["a"], options.get("act", "silu")) * t["b"]}


def glu(layer: str, t: Tensors, options: dict) -> Tensors:
    """w12: w1 above w2."""
    a, b = F.linear(t["x"], t["w12"]).chunk(2, -1)
    return {"y": F.linear(activate(a, options.get("act", "silu")) * b, t["w3"])}


def ffn(layer: str, t: Tensors, options: dict) -> Tensors:
    return {"y": F.linear(activate(F.linear(t["x"], t["w1"]), options.get("act", "relu")), t["w2"])}


def philox(seed: int, stream: int, positions: np.ndarray) -> np.ndarray:
    """Four random words (uint64 below 2^32) for each position: Philox4x32-10, as core/tensor/random.h draws them."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1 = positions & low, positions >> np.uint64(32)
    c2, c3 = np.full_like(c0, stream & 0xFFFFFFFF), np.full_like(c0, stream >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = p1 >> np.uint64(32) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = p0 >> np.uint64(32) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), -1)


def dropout(layer: str, t: Tensors, options: dict) -> Tensors:
    x, p = t["x"], options["p"]
    words = philox(options["seed"], 3, np.arange((x.numel() + 3) // 4, dtype=np.uint64)).reshape(-1)[:x.numel()]
    kept = torch.from_numpy(words >= round(p * 2**32)).reshape(x.shape)
    return {"y": torch.where(kept, x / (1.0 - p) if p < 1.0 else x, 0.0)}


def cross_entropy(layer: str, t: Tensors, options: dict) -> Tensors:
    logits, targets = t["logits"].flatten(0, -2), t["targets"].flatten().long()
    ignored, reduction = options.get("ignore_index", -100), options.get("reduction", "mean")
    rows = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="none",
                           label_smoothing=options.get("label_smoothing", 0.0))
    counted = targets != ignored
    rows = rows + options.get("z_loss", 0.0) * torch.logsumexp(logits, -1).square() * counted
    if reduction == "none":
        return {"loss": rows.reshape(t["targets"].shape)}
    return {"loss": rows.sum() / (counted.sum().clamp(min=1) if reduction == "mean" else 1)}


def linear_cross_entropy(layer: str, t: Tensors, options: dict) -> Tensors:
    return cross_entropy(layer, {"logits": F.linear(t["x"], t["weight"]), "targets": t["targets"]}, options)
