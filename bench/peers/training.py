"""Training steps of heddle's configs in PyTorch: the step itself, and the rows of the suite `training` for benchmark.py.

Providers: torch (eager) and torch_compile. Softmax attention is scaled_dot_product_attention; lightning attention is that
of flash-linear-attention where it is importable and there is a GPU, else products of matrices by chunks (tnl.py). A row
says which it was.
"""

import importlib.util
import os
import statistics
import sys
import time

import torch

from config import load_config
from tnl import CHUNK, LanguageModel

WARMUP_STEPS = 3
LEAST_STEPS = 5
LEAST_SECONDS = 0.1
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}

torch.set_flush_denormal(True)  # on a CPU the far ends of the decay would cost tens of times the rest


def optimizer_of(model, section):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": section["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=section["lr"], betas=tuple(section["betas"]),
                             eps=section["eps"], fused=True)


class TrainingStep:
    """Forward, backward, clipping of the global norm, AdamW on matrices with decay. Parameters are float32; where the
    config says bfloat16, forward runs under autocast."""

    def __init__(self, config, attention, compiled=False, device="cpu"):
        dtype = config["trainer"].get("dtype", "float32")
        if dtype not in AUTOCAST:
            raise ValueError(f"trainer.dtype is {dtype}, this peer knows {' and '.join(AUTOCAST)}")
        self.device, self.autocast = torch.device(device), AUTOCAST[dtype]
        torch.manual_seed(config.get("seed", 1))
        self.model = LanguageModel(config["model"], config["trainer"]["sequence_length"], attention).to(self.device)
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = optimizer_of(self.model, config["optimizer"])
        self.clip_norm = config["optimizer"]["clip_norm"]

    def __call__(self, batches):
        """Takes a step with the mean gradient of the batches, each (tokens, targets) on the host, and returns the mean
        loss and the norm of the gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            tokens, targets = (part.to(self.device) for part in batch)
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                loss = self.forward(tokens, targets) / len(batches)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return total.item(), norm.item()


# --- The suite ---


def attention_of(config, device):
    """How the mixer is computed, as a row says it."""
    if config["model"]["mixer"].get("type") == "softmax_attention":
        return "sdpa"
    if device.type == "cuda" and importlib.util.find_spec("fla"):
        return "fla"
    if config["trainer"]["sequence_length"] % CHUNK:
        raise ValueError(f"trainer.sequence_length must be a multiple of {CHUNK}")
    return "chunked"


def configs_of(path, spec, device, names):
    """Each (name, config) that the suite at `path` lists for the device, or those with one of the names."""
    listed = [file for kind, files in spec["training"].items() if names or kind == device.type for file in files]
    for file in dict.fromkeys(listed):
        name = os.path.splitext(os.path.basename(file))[0]
        if not names or name in names:
            yield name, load_config(os.path.join(os.path.dirname(path), file))


def batches_of(config):
    """Those of `heddle bench training`: tokens in turn."""
    trainer, vocabulary = config["trainer"], config["model"]["vocab_size"]
    shape = trainer["batch_size"], trainer["sequence_length"]
    tokens = (torch.arange(shape[0] * shape[1]) % vocabulary).view(shape)
    return [(tokens, tokens)] * trainer.get("accumulate", 1)


def milliseconds(step, batches):
    seconds = []
    while len(seconds) < LEAST_STEPS or sum(seconds) < LEAST_SECONDS:
        begin = time.perf_counter()
        step(batches)  # its numbers are read, so it is done
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) * 1e3


def mebibytes(step, batches):
    torch.cuda.reset_peak_memory_stats()
    step(batches)
    return torch.cuda.max_memory_allocated() / 2**20


def measured(config, attention, compiled, device, quantities):
    """Each (quantity, value, unit) of one provider; nothing of it is left when it ends."""
    step, batches = TrainingStep(config, attention, compiled, device), batches_of(config)
    for _ in range(WARMUP_STEPS):
        step(batches)
    for quantity in quantities:
        if quantity == "speed":
            yield quantity, milliseconds(step, batches), "ms"
        else:
            yield quantity, mebibytes(step, batches), "MiB"


def rows(path, spec, arguments, device, device_name):
    if arguments.n or "step" not in arguments.passes:
        return
    suite = spec.get("suite", os.path.splitext(os.path.basename(path))[0])
    for name, config in configs_of(path, spec, device, arguments.config):
        trainer = config["trainer"]
        tokens = trainer.get("accumulate", 1) * trainer["batch_size"] * trainer["sequence_length"]
        for provider, compiled in (("torch", False), ("torch_compile", True)):
            if arguments.provider and provider not in arguments.provider:
                continue
            try:
                attention = attention_of(config, device)
                for quantity, value, unit in measured(config, attention, compiled, device, arguments.quantity):
                    row = {"suite": suite, "config": name, "pass": "step", "quantity": quantity, "n": tokens,
                           "dtype": trainer.get("dtype", "float32"), "device": device_name, "provider": provider,
                           "value": value, "unit": unit, "attention": attention}
                    yield row | ({"tokens_per_second": tokens / value * 1e3} if quantity == "speed" else {})
            except Exception as error:  # one that fails, as for lack of memory, must not end the table
                print(f"{provider} failed on {name}: {error}", file=sys.stderr)
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
