"""The model of configs/toy_kjv.yaml in PyTorch: embedding, N x [residual + norm, mixer, residual + norm, GLU], norm, head.
The mixer is lightning attention or softmax attention. Written for speed in plain torch operators, with heddle's parameter
names, so that a checkpoint of heddle loads with load_state_dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 64


def refuse_others(name: str, section: dict, known: dict) -> None:
    """Raises ValueError where the section has another value than those that this peer knows."""
    for key, value in known.items():
        if section.get(key, value) != value:
            raise ValueError(f"{name}.{key} is {section[key]}, this peer knows {value}")


def slopes(heads: int, layer: int, layers: int) -> Tensor:
    """Log decay of each head: -2^(-8(h+1)/H) * (1 - l/(L-1) + 1e-5)."""
    depth = 1.0 - layer / max(layers - 1, 1) + 1e-5
    return -(2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)) * depth


def srms_norm(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=eps)


class DecayedAttention(nn.Module):
    """o_t = scale * q_t^T S_t, S_t = lambda S_{t-1} + k_t v_t^T, for q, k, v (B, H, N, D). quadratic: the masked N x N
    form; chunked: that form within chunks, the state between them (N is a multiple of CHUNK)."""

    def __init__(self, log_decay: Tensor, length: int, scale: float, form: str):
        super().__init__()
        span = length if form == "quadratic" else CHUNK
        self.span, self.chunks = span, length // span
        log_decay = log_decay[:, None]
        steps = torch.arange(span, dtype=torch.float64)
        distance = steps[:, None] - steps[None, :]
        within = torch.exp(log_decay[:, :, None] * distance.clamp(min=0)) * (distance >= 0)  # lambda^(i-j)
        self.keep("within", scale * within[:, None])
        self.keep("into", scale * torch.exp(log_decay * (steps + 1))[:, None, :, None])
        self.keep("out_of", torch.exp(log_decay * (span - 1 - steps))[:, None, :, None])
        self.keep("over", torch.exp(log_decay * span)[:, :, None])

    def keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.chunks, self.span)) for x in (q, k, v))
        o = (q @ k.transpose(-1, -2) * self.within) @ v
        if self.chunks > 1:
            added = (k * self.out_of).transpose(-1, -2) @ v  # what each chunk adds to the state
            states = [added[:, :, 0]]
            for chunk in range(1, self.chunks - 1):
                states.append(self.over * states[-1] + added[:, :, chunk])
            states = torch.stack([torch.zeros_like(states[0]), *states], 2)
            o = o + (q * self.into) @ states
        return o.flatten(2, 3)


class FlaAttention(nn.Module):
    """The same by the Triton kernels of flash-linear-attention, which need a GPU."""

    def __init__(self, log_decay: Tensor, scale: float):
        super().__init__()
        from fla.ops.simple_gla import chunk_simple_gla

        self.function, self.scale = chunk_simple_gla, scale
        self.register_buffer("log_decay", log_decay.float(), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))  # rotation leaves q and k in float32
        o, _ = self.function(q, k, v, g_gamma=self.log_decay, scale=self.scale)
        return o.transpose(1, 2)


class Rotary(nn.Module):
    """Rotates features k and k + D/2 of x (B, H, N, D) by n * base^(-2k/D) at position n."""

    def __init__(self, base: float, head_dim: int, length: int):
        super().__init__()
        theta = base ** (-2.0 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim)
        phase = torch.arange(length, dtype=torch.float64)[:, None] * theta
        self.register_buffer("cos", torch.cos(phase).float(), persistent=False)
        self.register_buffer("sin", torch.sin(phase).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return torch.cat((low * self.cos - high * self.sin, low * self.sin + high * self.cos), -1)


class Norm(nn.Module):
    def __init__(self, section: dict):
        super().__init__()
        refuse_others("norm", section, {"type": "srms_norm"})
        self.eps = section.get("eps", 1e-5)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        r = x if residual is None else x + residual
        return srms_norm(r, self.eps), r


class Lightning(nn.Module):
    """silu of q, k, v, rotation on chosen layers, decayed linear attention, gated norm over each head."""

    def __init__(self, section: dict, dim: int, layer: int, layers: int, length: int, attention: str):
        super().__init__()
        self.heads = section["heads"]
        self.head_dim = dim // self.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        rank = section["gate"]["rank"]
        self.gate = nn.ModuleDict({"down": nn.Linear(dim, rank, bias=False), "up": nn.Linear(rank, dim, bias=False)})
        self.out = nn.Linear(dim, dim, bias=False)
        rotary = section["lrpe"]
        rotates = layer in rotary.get("layers", range(layers))
        self.rotary = Rotary(rotary.get("base", 10000.0), self.head_dim, length) if rotates else nn.Identity()
        log_decay, scale = slopes(self.heads, layer, layers), self.head_dim**-0.5
        self.attention = (FlaAttention(log_decay, scale) if attention == "fla"
                          else DecayedAttention(log_decay, length, scale, attention))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = F.silu(self.qkv(x)).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = self.attention(self.rotary(q), self.rotary(k), v)
        o = srms_norm(o.transpose(1, 2), eps=1e-5).reshape(batch, length, dim)
        return self.out(o * torch.sigmoid(self.gate["up"](self.gate["down"](x))))


class SoftmaxAttention(nn.Module):
    """The attention of a transformer with rotary positions, by scaled_dot_product_attention."""

    def __init__(self, section: dict, dim: int, length: int):
        super().__init__()
        refuse_others("mixer", section, {"kv_heads": 0, "window": 0})
        self.heads = section["heads"]
        self.head_dim = dim // self.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.rotary = Rotary(section.get("base", 10000.0), self.head_dim, length)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.rotary(q).to(v.dtype), self.rotary(k).to(v.dtype)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).reshape(batch, length, dim))


def mixer_of(model: dict, layer: int, length: int, attention: str) -> nn.Module:
    section = model["mixer"]
    if section.get("type") == "lightning":
        return Lightning(section, model["dim"], layer, model["layers"], length, attention)
    if section.get("type") == "softmax_attention":
        return SoftmaxAttention(section, model["dim"], length)
    raise ValueError(f"mixer.type is {section.get('type')}, this peer knows lightning and softmax_attention")


class Glu(nn.Module):
    def __init__(self, section: dict, dim: int):
        super().__init__()
        refuse_others("channel", section, {"type": "glu", "act": "silu"})
        self.w12 = nn.Linear(dim, 2 * section["hidden"], bias=False)
        self.w3 = nn.Linear(section["hidden"], dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, model: dict, layer: int, length: int, attention: str):
        super().__init__()
        self.mixer_norm = Norm(model["norm"])
        self.mixer = mixer_of(model, layer, length, attention)
        self.channel_norm = Norm(model["norm"])
        self.channel = Glu(model["channel"], model["dim"])

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x, residual = self.mixer_norm(x, residual)
        x, residual = self.channel_norm(self.mixer(x), residual)
        return self.channel(x), residual


class LanguageModel(nn.Module):
    def __init__(self, model: dict, length: int, attention: str):
        super().__init__()
        refuse_others("model", model, {"tie_embeddings": False, "dropout": 0.0})
        self.embedding = nn.Embedding(model["vocab_size"], model["dim"])
        self.blocks = nn.ModuleList(Block(model, layer, length, attention) for layer in range(model["layers"]))
        self.final_norm = Norm(model["norm"])
        self.head = nn.Linear(model["dim"], model["vocab_size"], bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1.0 / math.sqrt(model["dim"]))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, residual = self.embedding(tokens), None
        for block in self.blocks:
            x, residual = block(x, residual)
        x, _ = self.final_norm(x, residual)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())
