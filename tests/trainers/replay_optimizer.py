"""Takes the steps of files that optimizer_torch_test.cc wrote with torch.optim, in float64, and compares the ends."""

import functools
import inspect
import re
import sys

import torch
from safetensors import safe_open


@functools.cache
def muon_in_full_precision():
    """torch.optim.Muon, whose products are those of the parameters' dtype and not of bfloat16."""
    from torch.optim import _muon as module

    source = inspect.getsource(module._zeropower_via_newtonschulz)
    source, count = re.subn(r"grad\.(bfloat16\(\)|to\([^()]*torch\.bfloat16[^()]*\))", "grad.clone()", source)
    assert count == 1, "torch.optim._muon is not as it was"
    exec(source, vars(module))
    return module.Muon


def make(meta, parameters):
    """Optimizers with their rates relative to that of the step. Vectors have no weight decay."""
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.23}, {"params": vectors, "weight_decay": 0.0}]
    nesterov = bool(meta.get("nesterov"))
    adamw = {"betas": (0.71, 0.937), "eps": 1e-3}
    if meta["type"] == "adamw":
        return [(torch.optim.AdamW(groups, **adamw), 1.0)]
    if meta["type"] == "sgd":
        return [(torch.optim.SGD(groups, momentum=0.83, nesterov=nesterov), 1.0)]
    muon = muon_in_full_precision()(groups[:1], momentum=0.83, nesterov=nesterov, adjust_lr_fn=meta["scale"])
    return [(muon, 1.0), (torch.optim.AdamW(groups[1:], **adamw), 0.5)]


def main(path):
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    names = [name.removeprefix("start.") for name in tensors if name.startswith("start.")]
    parameters = {name: torch.nn.Parameter(tensors["start." + name].clone()) for name in names}
    if meta["type"] == "muon" and not hasattr(torch.optim, "Muon"):
        return
    optimizers = make(meta, list(parameters.values()))
    for step in range(1, 6):
        for name, parameter in parameters.items():
            parameter.grad = tensors[f"gradient.{step}.{name}"].clone()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 9.0)
        for optimizer, scale in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * step * scale
            optimizer.step()
    for name, parameter in parameters.items():
        moved = tensors["end." + name] - tensors["start." + name]
        apart = (parameter.detach() - tensors["end." + name]).abs().max() / moved.abs().max()
        # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
        assert apart < 1e-6, f"{meta['type']}: {name} is {apart:.2g} apart"


for path in sys.argv[1:]:
    main(path)
