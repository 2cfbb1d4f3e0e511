"""A language model of heddle in PyTorch: loads a folder that `heddle export --format hf` wrote, and generates.

    python modeling_heddle.py DIR --prompt "In the beginning "      (of a model of bytes, or of pieces)
    python modeling_heddle.py DIR --prompt-tokens 1,2,3             (of a model of token ids)
    python modeling_heddle.py DIR --check                           (against logits that heddle computed)

    model = HeddleForCausalLM.from_pretrained("DIR")
    logits = model(tokens)                                          # (batch, length) -> (batch, length, vocab_size)
    logits, state = model.read(tokens, model.initial_state())       # the same with a state, to go on from

It needs torch and safetensors, and sentencepiece to read and write text by a model of pieces. Modules and parameters
have the names of the tensors in the folder, options those of docs/config.md; the formulas are those of docs/model.md
and docs/layers.md. Dropout is left out: this is for inference, though gradients flow. Sums of norms, states and decays
are float32 whatever the dtype (float64 in float64).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

State = dict[str, Any]  # what a mixer keeps of the tokens that it has read: "position" and tensors

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "elu1": lambda x: torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0))),
    "relu2": lambda x: F.relu(x) ** 2,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

FEATURE_MAPS = (*ACTIVATIONS, "softmax")
NORMS = ("layer_norm", "rms_norm", "srms_norm", "group_norm", "group_rms_norm", "group_srms_norm")


class ConfigError(ValueError):
    """A value of config.json that is missing, or not what is expected there."""


class Options(dict[str, Any]):
    """A section of config.json, which knows the path of its keys: "model.mixer.act"."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        super().__init__(values)
        self.prefix = f"{path}." if path else ""
        for key, value in values.items():
            if isinstance(value, dict):
                self[key] = Options(value, self.prefix + key)

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.prefix}{key} is missing")

    def choice(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        """The value of the key, which is one of the known names."""
        name = self[key] if default is None else self.get(key, default)
        if name not in tuple(known):
            raise ConfigError(f"{self.prefix}{key} is {name!r}, expected one of {', '.join(known)}")
        return name


def wide(x: Tensor) -> Tensor:
    """x in the dtype of sums: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def numbers(count: int) -> Tensor:
    """0 .. count - 1, for values that are fixed: on the CPU, also while the modules are made without memory."""
    return torch.arange(count, dtype=torch.float64, device="cpu")


def feature_map(x: Tensor, act: str) -> Tensor:
    """An activation of x (..., features of a head), or the softmax over these features."""
    return wide(x).softmax(-1).to(x.dtype) if act == "softmax" else ACTIVATIONS[act](x)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def normalize(x: Tensor, groups: int, eps: float, center: bool = False) -> Tensor:
    """Each of `groups` equal parts of the last dimension over its deviation (center) or its root mean square."""
    x = wide(x).unflatten(-1, (groups, -1))
    if center:
        x = x - x.mean(-1, keepdim=True)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).flatten(-2)


class Norm(nn.Module):
    """layer_norm, rms_norm, srms_norm, and the same in groups."""

    def __init__(self, options: Options, dim: int) -> None:
        super().__init__()
        self.groups, self.eps, self.scale = options.get("groups", 1), options["eps"], options["scale"]
        self.center = options.choice("type", NORMS) in ("layer_norm", "group_norm")
        self.weight = nn.Parameter(torch.ones(dim)) if options["weight"] else None
        self.bias = nn.Parameter(torch.zeros(dim)) if options["bias"] else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * normalize(x, self.groups, self.eps, self.center)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


class Lrpe(nn.Module):
    """Position encodings lrpe_rotate (RoPE) and lrpe_cosine of x (batch, length, heads, features)."""

    def __init__(self, options: Options, heads: int, head_dim: int) -> None:
        super().__init__()
        self.rotates = options.choice("type", ("lrpe_rotate", "lrpe_cosine")) == "lrpe_rotate"
        self.act = options.choice("act", FEATURE_MAPS)
        self.pairing = options.choice("pairing", ("half", "interleaved"), "half")
        self.grid, self.extra_tokens = options.get("shape") or [], options.get("extra_tokens", 0)
        angles = head_dim // 2 if self.rotates else -(-head_dim // max(1, len(self.grid)))
        theta = options["base"] ** (-2.0 * numbers(angles) / head_dim)
        theta_init = options.choice("theta_init", ("rope", "low_half", "high_half"))
        if theta_init == "low_half":
            theta[: angles // 2] = 0
        elif theta_init == "high_half":
            theta[angles // 2 :] = 0
        theta = theta.repeat(heads if options["per_head"] else 1, 1)
        self.theta = nn.Parameter(theta.float()) if options["learnable"] else None
        self.fixed_theta = theta

    def places(self, offset: int, length: int, device: torch.device) -> Tensor:
        """The position of each token on each axis, (axes, length): extra tokens, then a text or a grid row by row."""
        positions = torch.arange(offset, offset + length, device=device) - self.extra_tokens
        if not self.grid:
            return positions.clamp(min=0)[None].double()
        if offset != 0 or length != self.extra_tokens + math.prod(self.grid):
            raise ValueError(f"a text on the grid {self.grid} is read in one pass, as a whole")
        places: list[Tensor] = []
        rest = positions.clamp(min=0)
        for extent in reversed(self.grid):
            places.insert(0, rest % extent)
            rest = rest // extent
        return torch.stack(places).double()

    def forward(self, x: Tensor, offset: int) -> Tensor:
        theta = self.theta if self.theta is not None else self.fixed_theta.to(x.device, wide_dtype(x.dtype))
        places = self.places(offset, x.shape[1], x.device)
        phi = places[:, :, None, None] * theta.double()  # (axes, length, heads or 1, angles)
        phi = torch.cat(tuple(phi), dim=-1)
        a = wide(feature_map(x, self.act))
        if not self.rotates:
            phi = phi[..., : x.shape[-1]]  # the last axis may have fewer features
            return torch.cat((a * phi.cos().to(a), a * phi.sin().to(a)), dim=-1).to(x.dtype)
        cos, sin = phi.cos().to(a), phi.sin().to(a)
        if self.pairing == "half":
            first, second = a.chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
        first, second = a[..., 0::2], a[..., 1::2]
        return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2).to(x.dtype)


def lrpe_of_layer(options: Options, layer: int, heads: int, head_dim: int) -> Lrpe | None:
    section = options.get("lrpe")
    if section is None or layer not in (section.get("layers") or [layer]):
        return None
    return Lrpe(section, heads, head_dim)


def rotary(base: float, heads: int, head_dim: int) -> Lrpe:
    options = {"type": "lrpe_rotate", "theta_init": "rope", "base": base, "learnable": False, "per_head": False}
    return Lrpe(Options(options | {"act": "none"}), heads, head_dim)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T and o_t = scale q_t^T S_t, in chunks of 64 tokens.

    q (B, N, H, D), k (B, N, KV, D), v (B, N, KV, Dv); log_decay None, (H) or (B, N, H); state (B, H, D, Dv) or None,
    which is zeros. Returns o (B, N, H, Dv) and the state after the last token.
    """
    length, heads = q.shape[1:3]
    q, k, v = (wide(x).repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2) for x in (q, k, v))
    if log_decay is None:
        log_decay = torch.zeros(heads, device=q.device)
    decay = log_decay.to(q.device, torch.float64)
    decay = decay[None, :, None].expand(1, heads, length) if decay.dim() == 1 else decay.transpose(1, 2)
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for begin in range(0, length, 64):
        part = slice(begin, begin + 64)
        q_part, k_part, v_part = q[:, :, part], k[:, :, part], v[:, :, part]
        sums = decay[..., part].cumsum(-1)
        between = sums[..., :, None] - sums[..., None, :]
        seen = torch.ones_like(between, dtype=torch.bool).tril()
        mask = between.masked_fill(~seen, -math.inf).exp().to(q)
        o = (q_part @ state) * sums.exp().to(q)[..., None] + (q_part @ k_part.mT * mask) @ v_part
        outputs.append(scale * o)
        last = sums[..., -1:]
        state = last.exp().to(q)[..., None] * state + (k_part * (last - sums).exp().to(q)[..., None]).mT @ v_part
    return torch.cat(outputs, dim=2).transpose(1, 2), state


def lightning_log_decay(heads: int, layer: int, layers: int) -> Tensor:
    slopes = 2.0 ** (-8.0 * (numbers(heads) + 1) / heads)
    depth = layer / (layers - 1) if layers > 1 else 0.0
    return -slopes * (1.0 - depth + 1e-5)


class LowRank(nn.Module):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = linear(dim, rank), linear(rank, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Mixer(nn.Module):
    """What mixes tokens: forward(x, state) gives y; x and y (batch, length, dim). A state, which starts as {"position":
    0}, is advanced in place; without one the tokens begin a text."""


class Lightning(Mixer):
    """The mixer of TransNormerLLM."""

    def __init__(self, options: Options, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        self.heads, self.act, gate = options["heads"], options.choice("act", ACTIVATIONS), options.get("gate")
        self.log_decay = lightning_log_decay(self.heads, layer, layers)
        self.lrpe = lrpe_of_layer(options, layer, self.heads, dim // self.heads)
        self.qkv, self.out = linear(dim, 3 * dim), linear(dim, dim)
        self.gate_position = gate.choice("position", ("pre", "post")) if gate is not None else None
        if gate is not None:
            self.gate_act = gate.choice("act", ACTIVATIONS)
            self.gate = LowRank(dim, gate["rank"]) if gate["rank"] > 0 else linear(dim, dim)

    def forward(self, x: Tensor, state: State) -> Tensor:
        u = ACTIVATIONS[self.act](self.qkv(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = u.unbind(2)
        scale = q.shape[-1] ** -0.5
        if self.lrpe is not None:
            q, k = self.lrpe(q, state["position"]), self.lrpe(k, state["position"])
        log_decay = self.log_decay.to(wide_dtype(x.dtype))
        o, state["state"] = linear_attention(q, k, v, log_decay, scale, state.get("state"))
        o = o.flatten(-2)
        if self.gate_position is None:
            return self.out(normalize(o, self.heads, 1e-5).to(x.dtype))
        gate = wide(ACTIVATIONS[self.gate_act](self.gate(x)))
        if self.gate_position == "pre":
            return self.out(normalize(o * gate, self.heads, 1e-5).to(x.dtype))
        return self.out((normalize(o, self.heads, 1e-5) * gate).to(x.dtype))


class LinearAttention(Mixer):
    """Linear attention with a feature map, and a norm or the normalizer q . (sum of k)."""

    def __init__(self, options: Options, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        self.heads, self.head_dim = options["heads"], dim // options["heads"]
        self.kv_heads = options["kv_heads"] or self.heads
        self.act, self.normalizer = options.choice("act", FEATURE_MAPS), options["normalizer"]
        self.log_decay = lightning_log_decay(self.heads, layer, layers) if options["decay"] else None
        self.lrpe = lrpe_of_layer(options, layer, self.heads, self.head_dim)
        self.qkv, self.out = linear(dim, (self.heads + 2 * self.kv_heads) * self.head_dim), linear(dim, dim)

    def forward(self, x: Tensor, state: State) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k = feature_map(q, self.act), feature_map(k, self.act)
        scale = self.head_dim**-0.5
        log_decay = None if self.log_decay is None else self.log_decay.to(wide_dtype(x.dtype))
        encoded_q, encoded_k = q, k
        if self.lrpe is not None:
            encoded_q, encoded_k = self.lrpe(q, state["position"]), self.lrpe(k, state["position"])
        o, state["state"] = linear_attention(encoded_q, encoded_k, v, log_decay, scale, state.get("state"))
        if self.normalizer:
            ones = torch.ones_like(k[..., :1])
            sums, state["key_sums"] = linear_attention(q, k, ones, log_decay, scale, state.get("key_sums"))
            return self.out((o / sums.clamp(min=1e-6)).flatten(-2).to(x.dtype))
        return self.out(normalize(o.flatten(-2), self.heads, 1e-5).to(x.dtype))


class Retention(Mixer):
    """The mixers `retention` (RetNet) and `simple_gla`, whose decays depend on the data."""

    def __init__(self, options: Options, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        self.heads, self.eps, self.divisor = options["heads"], options["eps"], options.get("divisor")
        keys, values = round(dim * options["expand_k"]), round(dim * options["expand_v"])
        self.q_proj, self.k_proj = linear(dim, keys), linear(dim, keys)
        self.v_proj, self.g_proj = linear(dim, values), linear(dim, values)
        self.g_norm_swish_gate = nn.ParameterDict({"weight": nn.Parameter(torch.ones(values // self.heads))})
        self.o_proj = linear(values, dim)
        if options["type"] == "simple_gla":
            self.gk_proj = nn.Linear(dim, self.heads)
        else:
            self.log_decay = torch.log1p(-(2.0 ** (-5.0 - numbers(self.heads))))
            self.rotary = rotary(options["base"], self.heads, keys // self.heads)

    def forward(self, x: Tensor, state: State) -> Tensor:
        q, k, v, g = (
            p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        )
        if self.divisor is None:
            log_decay = self.log_decay.to(wide_dtype(x.dtype))
            q, k = self.rotary(q, state["position"]), self.rotary(k, state["position"])
        else:
            log_decay = F.logsigmoid(wide(self.gk_proj(x))) / self.divisor
        o, state["state"] = linear_attention(q, k, v, log_decay, q.shape[-1] ** -0.5, state.get("state"))
        y = normalize(o, 1, self.eps) * self.g_norm_swish_gate["weight"] * F.silu(wide(g))
        return self.o_proj(y.flatten(-2).to(x.dtype))


class SoftmaxAttention(Mixer):
    """The attention of a transformer with rotary positions, within a window if there is one."""

    def __init__(self, options: Options, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        self.heads, self.head_dim = options["heads"], dim // options["heads"]
        self.kv_heads, self.window = options["kv_heads"] or self.heads, options["window"]
        self.rotary = rotary(options["base"], self.heads, self.head_dim)
        self.qkv, self.out = linear(dim, (self.heads + 2 * self.kv_heads) * self.head_dim), linear(dim, dim)

    def forward(self, x: Tensor, state: State) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        position = state["position"]
        q, k = self.rotary(q, position), self.rotary(k, position)
        if "keys" in state:
            k, v = torch.cat((state["keys"], k), dim=1), torch.cat((state["values"], v), dim=1)
        kept = k.shape[1] if self.window == 0 else min(k.shape[1], self.window - 1)
        state["keys"], state["values"] = k[:, k.shape[1] - kept :], v[:, v.shape[1] - kept :]
        end = position + x.shape[1]
        query_at = torch.arange(position, end, device=x.device)[:, None]
        key_at = torch.arange(end - k.shape[1], end, device=x.device)
        seen = key_at <= query_at
        if self.window > 0:
            seen &= key_at > query_at - self.window
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=2) for part in (k, v))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
        return self.out(o.transpose(1, 2).flatten(-2))


class Glu(nn.Module):
    def __init__(self, options: Options, dim: int) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.choice("act", ACTIVATIONS)]
        self.w12, self.w3 = linear(dim, 2 * options["hidden"]), linear(options["hidden"], dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.act(a) * b)


class Ffn(nn.Module):
    def __init__(self, options: Options, dim: int) -> None:
        super().__init__()
        self.act = ACTIVATIONS[options.choice("act", ACTIVATIONS)]
        self.w1, self.w2 = linear(dim, options["hidden"]), linear(options["hidden"], dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)))


MIXERS: dict[str, type[Mixer]] = {
    "lightning": Lightning,
    "linear_attention": LinearAttention,
    "retention": Retention,
    "simple_gla": Retention,
    "softmax_attention": SoftmaxAttention,
}
CHANNELS: dict[str, type[nn.Module]] = {"glu": Glu, "ffn": Ffn}


def mixer_of_layer(section: Options, layer: int) -> Options:
    """The section {type, ...} itself, or with {pattern, kinds} the kind that the pattern names."""
    pattern = section.get("pattern")
    return section["kinds"][pattern[layer % len(pattern)]] if pattern else section


class Block(nn.Module):
    def __init__(self, model: Options, layer: int) -> None:
        super().__init__()
        dim, mixer = model["dim"], mixer_of_layer(model["mixer"], layer)
        self.mixer_norm = Norm(model["norm"], dim)
        self.mixer = MIXERS[mixer.choice("type", MIXERS)](mixer, dim, layer, model["layers"])
        self.channel_norm = Norm(model["norm"], dim)
        self.channel = CHANNELS[model["channel"].choice("type", CHANNELS)](model["channel"], dim)

    def forward(self, x: Tensor, state: State) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), state)
        return x + self.channel(self.channel_norm(x))


class HeddleForCausalLM(nn.Module):
    """The model of config.json, whose section `model` is that of docs/config.md with every default written out."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        options = Options(config)
        model = options["model"]
        self.config = config
        self.tokens = options.choice("tokens", ("bytes", "pieces", "ids"))
        self.separator: int | None = config.get("separator")  # the token before each document, which ends the last one
        self.embedding = nn.Embedding(model["vocab_size"], model["dim"])
        self.blocks = nn.ModuleList(Block(model, layer) for layer in range(model["layers"]))
        self.final_norm = Norm(model["norm"], model["dim"])
        self.head = None if model["tie_embeddings"] else linear(model["dim"], model["vocab_size"])

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> HeddleForCausalLM:
        """Loads a folder; dtype None is that of its tensors. Raises an error that names what does not fit."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config.get("model_type") if isinstance(config, dict) else None
        if model_type != "heddle":
            raise ValueError(f"{folder}/config.json has model_type {model_type!r}, expected 'heddle'")
        try:
            with torch.device("meta"):
                model = cls(config)
        except ConfigError as error:
            raise ConfigError(f"{folder}/config.json: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{folder}/config.json describes no model of heddle: {error!r}") from error
        tensors, files = read_tensors(folder)
        if dtype is None:
            check_dtypes(model, tensors, files)
        # A learned theta stays wide: rounded, it would turn far tokens anywhere.
        tensors = {
            name: tensor.to(device, dtype if not name.endswith("lrpe.theta") else dtype and wide_dtype(dtype))
            for name, tensor in tensors.items()
        }
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def initial_state(self) -> list[State]:
        """The state at the start of a text, of each block."""
        return [{"position": 0} for _ in self.blocks]

    def read(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Logits of tokens (batch, length), which continue the text of `state`, and the state after them."""
        state = [dict(of_block) for of_block in state]
        x = self.embedding(tokens)
        for block, of_block in zip(self.blocks, state, strict=True):
            x = block(x, of_block)
            of_block["position"] += tokens.shape[1]
        head = self.embedding if self.head is None else self.head
        return F.linear(self.final_norm(x), head.weight), state

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, vocab_size) of the tokens (batch, length) of whole texts."""
        return self.read(tokens, self.initial_state())[0]

    @torch.inference_mode()
    def generate(
        self,
        prompt: list[int],
        tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 1,
        choices: int | None = None,
        top_p: float = 1.0,
    ) -> Iterator[int]:
        """Yields up to `tokens` ids after the prompt, drawn by draw() from those below `choices` (None: all, or 256).

        A model of documents reads its separator before the prompt, which may be empty there, and ends at the next one.
        """
        device = self.embedding.weight.device
        generator = torch.Generator().manual_seed(seed)
        if choices is None and self.tokens == "bytes":
            choices = 256
        state, unread = self.initial_state(), list(prompt)
        if self.separator is not None:
            if choices is not None:
                choices = max(choices, self.separator + 1)
            if unread[:1] != [self.separator]:
                unread = [self.separator, *unread]
        for _ in range(tokens):
            logits, state = self.read(torch.tensor([unread], device=device), state)
            token = draw(logits[0, -1, :choices].double().cpu(), temperature, top_k, top_p, generator)
            if token == self.separator:
                return
            yield token
            unread = [token]


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Draws an index of the logits. Temperature 0: the largest. Else: among the top_k largest (0: all), from the
    smallest set whose probability reaches top_p. Of equal logits the lower index counts as the larger one."""
    scores, order = logits.sort(descending=True, stable=True)  # NaN comes first
    if not scores[0].isfinite():
        raise ValueError(f"the largest logit of the model is {scores[0]}, expected a finite number")
    if temperature == 0:
        return int(order[0])
    weights = ((scores - scores[0]) / temperature).exp()[: top_k or None]
    sums = weights.cumsum(0)
    kept = 1 + int((sums[:-1] < top_p * sums[-1]).sum())
    return int(order[torch.multinomial(weights[:kept], 1, generator=generator)])


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """The tensors of model.safetensors, or of the files that model.safetensors.index.json lists, and their files."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        if (folder / names[0]).exists():
            raise ValueError(f"{folder} holds {names[0]} and {index.name}, expected one of them")
        content = json.loads(index.read_text(encoding="utf-8"))
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{index}: 'weight_map' is missing, expected a map of tensors to files")
        names = sorted(set(places.values()))
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for file in (folder / name for name in names):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():
                if name in files:
                    raise ValueError(f"{file}: tensor {name!r} is in {files[name].name}, too, expected in one file")
                tensors[name], files[name] = reader.get_tensor(name), file
                if not tensors[name].is_floating_point():
                    raise ValueError(f"{file}: tensor {name!r} is {dtype_name(tensors[name])}, expected a floating dtype")
    return tensors, files


def check_dtypes(model: nn.Module, tensors: dict[str, Tensor], files: dict[str, Path]) -> None:
    """Matrix products and the embedding want one dtype of all their tensors; those of norms may be of another."""
    first = ""
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        for name in (f"{prefix}.{own}" for own, _ in module.named_parameters()):
            first = first or name
            if name not in tensors or first not in tensors or tensors[name].dtype == tensors[first].dtype:
                continue
            raise ValueError(
                f"{files[name]}: tensor {name!r} is {dtype_name(tensors[name])}, expected {dtype_name(tensors[first])}, "
                f"the dtype of {first!r}; a dtype that is given (--dtype) converts all"
            )


def check_logits(model: HeddleForCausalLM, folder: Path, tolerance: float = 1e-4) -> bool:
    """Compares the logits of logits.safetensors, which heddle computed, with ours: of one pass, and with a state."""
    with safe_open(folder / "logits.safetensors", framework="pt") as reader:
        tokens, expected = reader.get_tensor("tokens").long(), reader.get_tensor("logits").double()
    tokens = tokens.to(model.embedding.weight.device)
    with torch.inference_mode():
        found = {"one pass": model(tokens)}
        if not any(isinstance(module, Lrpe) and module.grid for module in model.modules()):
            state, parts = model.initial_state(), []
            for part in [*tokens[:, : tokens.shape[1] // 2].split(1, dim=1), tokens[:, tokens.shape[1] // 2 :]]:
                logits, state = model.read(part, state)
                parts.append(logits)
            found["with a state"] = torch.cat(parts, dim=1)
    largest, good = expected.abs().max(), True
    for name, logits in found.items():
        difference = float((logits.double().cpu() - expected).abs().max() / largest)
        good = good and difference <= tolerance  # false for NaN
        print(f"{name}: logits differ from heddle's by {difference:.2e} of the largest, {largest:.4g}")
    return good


def printable(text: bytes) -> str:
    """The text as a terminal can show it: what is no UTF-8, and control characters but newline and tab, as \\xNN."""
    def escaped(found: re.Match) -> str:
        return "".join(f"\\x{byte:02x}" for byte in found[0].encode())

    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", escaped, text.decode(errors="backslashreplace"))


class Bytes:
    """Text as tokens of one byte."""

    size = 256

    def encode(self, text: bytes) -> list[int]:
        return list(text)

    def decode(self, tokens: list[int]) -> bytes:
        return bytes(token for token in tokens if token < self.size)


class Pieces:
    """Text as pieces of sentencepiece, whose model is tokenizer.model."""

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.size: int = self.processor.get_piece_size()

    def encode(self, text: bytes) -> list[int]:
        return self.processor.encode(text)

    def decode(self, tokens: list[int]) -> bytes:
        return b"".join(self.bytes_of(token) for token in tokens if token < self.size)

    def bytes_of(self, token: int) -> bytes:
        """What a piece stands for: a byte, which may be part of a character, or a text, in which U+2581 is a space."""
        model, piece = self.processor, self.processor.id_to_piece(token)
        if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
            return b""
        return bytes([int(piece[1:-1], 16)]) if model.is_byte(token) else piece.replace("\u2581", " ").encode()


def decimal(kind: Callable[[str], float], text: str) -> float:
    """The number that the text is, as `heddle` reads it: without what only Python takes for a decimal number."""
    if re.fullmatch(r"[+-]?0\d[^.]*|.*_.*", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a decimal number without leading zeros")
    return kind(text)


def within(kind: Callable[[str], float], low: float, high: float = sys.float_info.max) -> Callable[[str], float]:
    """What argparse reads a number in [low, high] by."""
    def number(text: str) -> float:
        value = decimal(kind, text)
        if not low <= value <= high:
            limits = f">= {low}" if high == sys.float_info.max else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a number {limits}")
        return value

    return number


def ids(text: str) -> list[int]:
    return [int(decimal(int, word.strip())) for word in text.split(",")] if text else []


def main() -> int:
    parser = argparse.ArgumentParser(description="Goes on with a text, by a model that heddle has trained.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `heddle export --format hf` wrote")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to go on from; default: a line break, or none where a document is begun")
    prompts.add_argument("--prompt-tokens", type=ids, metavar="IDS", help="token ids to go on from, as in 1,2,3")
    parser.add_argument("--tokens", type=within(int, 0), default=200, help="how many to write, at most")
    parser.add_argument("--temperature", type=within(float, 0), default=0.8, help="0: always the likeliest")
    parser.add_argument("--top-k", type=within(int, 0), default=0, help="draw from the K likeliest only; 0: from all")
    parser.add_argument(
        "--top-p", type=within(float, 0, 1), default=1.0, help="draw from the likeliest of probability P together"
    )
    parser.add_argument("--seed", type=within(int, 0, 2**64 - 1), default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=("float64", "float32", "bfloat16", "float16"), help="default: of the tensors"
    )
    parser.add_argument("--check", action="store_true", help="compare with DIR/logits.safetensors, then end")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    try:
        model = HeddleForCausalLM.from_pretrained(arguments.folder, dtype, arguments.device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        parser.exit(1, f"error: {error}\n")
    if arguments.check:
        try:
            return 0 if check_logits(model, arguments.folder) else 1
        except (OSError, SafetensorError) as error:
            parser.exit(1, f"error: {error}; heddle export --logits N writes them\n")
    tokenizer: Bytes | Pieces | None = None
    writes_documents = model.separator is not None
    if arguments.prompt_tokens is not None:
        prompt = arguments.prompt_tokens
    elif model.tokens == "ids":
        if not writes_documents or arguments.prompt:
            parser.error("the tokens of this model are no text: give --prompt-tokens")
        prompt = []
    else:
        try:
            tokenizer = Bytes() if model.tokens == "bytes" else Pieces(arguments.folder)
        except (ImportError, OSError, RuntimeError) as error:
            parser.exit(1, f"error: cannot read text: {error}; --prompt-tokens reads and writes token ids\n")
        default = "" if writes_documents else "\n"
        text = default if arguments.prompt is None else arguments.prompt
        prompt_text = text.encode(errors="surrogateescape")  # an argument that is no UTF-8, as its bytes
        prompt = tokenizer.encode(prompt_text)
    if not prompt and not writes_documents:
        parser.error("the prompt is empty, expected at least one token")
    if not all(0 <= token < model.embedding.num_embeddings for token in prompt):
        parser.error(f"expected a prompt of tokens in [0, {model.embedding.num_embeddings})")
    generated = model.generate(
        prompt,
        arguments.tokens,
        arguments.temperature,
        arguments.top_k,
        arguments.seed,
        choices=tokenizer.size if tokenizer is not None else None,
        top_p=arguments.top_p,
    )
    try:
        written = list(generated)
    except (ValueError, RuntimeError) as error:  # a grid, a logit that is not finite, no memory
        parser.exit(1, f"error: {error}\n")
    if tokenizer is not None:
        print(printable(prompt_text + tokenizer.decode(written)))
    else:
        print(*prompt, *written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
