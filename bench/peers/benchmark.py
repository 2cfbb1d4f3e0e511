#!/usr/bin/env python3
"""Times other implementations of heddle's operators on heddle's suites, by heddle's protocol.

    python3 bench/peers/benchmark.py srms_norm norm_gate --jobs 8 --json peers.json
    heddle bench srms_norm norm_gate --json heddle.json
    python3 bench/compare.py heddle.json peers.json
    python3 bench/peers/benchmark.py training --quantity speed,memory --json peers.json

The suite `training` measures whole steps, which training.py describes: ms, tokens a second, and the peak of allocated MiB.
Providers of norms and position encodings: torch (eager), torch_functional (torch.nn.functional), torch_compile, and liger
where it is importable; those of attention and of losses are in providers.py.
Protocol (the same as `heddle bench`): before every timed call a buffer of eight times the L2 is overwritten; device
events around the call; 25 ms of warm-up, 100 ms of repeats; the median. Inputs are random normal numbers. Memory: the
mean over 20 repeats of the peak of allocated bytes. `bwd` adds to gradients that exist, `bwd_first` writes fresh ones.
With --device cpu the same by the clock, with --threads threads, and no memory.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import re
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import yaml

import operators
import providers as others
import training

HERE = os.path.dirname(os.path.abspath(__file__))
PASSES = ["fwd", "bwd", "bwd_first"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
ACTS = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid, "silu": F.silu}


# --- The operators in PyTorch, as one would write them ---


def norm(options, center, inputs):
    r = inputs["x"]
    if "residual" in inputs:
        r = r + inputs["residual"]
    gate = options.get("gate") or {}
    act = ACTS[gate.get("act", "none")]
    p = r.float()
    if "gate" in inputs and gate.get("position", "post") == "pre":
        p = p * act(inputs["gate"].float())
    if center:
        p = p - p.mean(-1, keepdim=True)
    y = p * torch.rsqrt(p.pow(2).mean(-1, keepdim=True) + options.get("eps", 1e-5)) * options.get("scale", 1.0)
    if "weight" in inputs:
        y = y * inputs["weight"].float()
    if "bias" in inputs:
        y = y + inputs["bias"].float()
    if "gate" in inputs and gate.get("position", "post") == "post":
        y = y * act(inputs["gate"].float())
    y = y.to(r.dtype)
    return (y, r) if "residual" in inputs and options.get("return_residual", True) else (y,)


def activated(options, x, sequence_dim=1):
    act = options.get("act", "none")
    if act == "softmax":
        dim = -1 if options.get("act_dim", "feature") == "feature" else sequence_dim
        return torch.softmax(x.float(), dim=dim).to(x.dtype)
    return ACTS[act](x)


def lrpe_rotate(options, inputs):
    a = activated(options, inputs["x"])
    theta = inputs["theta"].float()
    n, half = a.shape[1], a.shape[-1] // 2
    phase = (torch.arange(n, device=a.device) + options.get("offset", 0))[:, None, None] * theta
    phase = F.pad(phase, (0, half - theta.shape[-1]))
    cos, sin = phase.cos().to(a.dtype), phase.sin().to(a.dtype)
    first, second = a[..., :half], a[..., half:]
    return (torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1),)


def lrpe_cosine(options, inputs):
    """x (B, N, H, D) or (B, H, N, D): concat(a cos phi, a sin phi), phi as grid_angles in operators.py says."""
    bhnd = options.get("layout", "bnhd") == "bhnd"
    a = activated(options, inputs["x"], 2 if bhnd else 1)
    phi = operators.grid_angles(inputs["theta"].float(), a.shape[2 if bhnd else 1], a.shape[-1], options)
    if bhnd:
        phi = phi.transpose(0, 1)
    return (torch.cat([a * phi.cos().to(a.dtype), a * phi.sin().to(a.dtype)], dim=-1),)


def torch_operator(name, options):
    if name in ("layer_norm", "rms_norm", "srms_norm"):
        return functools.partial(norm, options, name == "layer_norm")
    if name == "lrpe_rotate":
        return functools.partial(lrpe_rotate, options)
    if name == "lrpe_cosine":
        return functools.partial(lrpe_cosine, options)
    return None


def functional_operator(name, options, inputs):
    if set(inputs) - {"x", "weight", "bias"} or options.get("scale", 1.0) != 1.0:
        return None
    eps = options.get("eps", 1e-5)
    if name == "layer_norm":
        return lambda t: (F.layer_norm(t["x"], t["x"].shape[-1:], t.get("weight"), t.get("bias"), eps),)
    if name in ("rms_norm", "srms_norm"):
        return lambda t: (F.rms_norm(t["x"], t["x"].shape[-1:], t.get("weight"), eps),)
    return None


def liger_operator(name, options, inputs):
    if set(inputs) - {"x", "weight", "bias"} or "weight" not in inputs:
        return None
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError:
        return None
    eps = options.get("eps", 1e-5)
    if name == "layer_norm" and "bias" in inputs:
        return lambda t: (LigerLayerNormFunction.apply(t["x"], t["weight"], t["bias"], eps),)
    if name == "rms_norm":
        return lambda t: (LigerRMSNormFunction.apply(t["x"], t["weight"], eps, 0.0, "llama", False),)
    return None


def providers(name, options, inputs):
    eager = torch_operator(name, options)
    if eager is not None:
        yield "torch", eager
        torch._dynamo.reset()
        yield "torch_compile", torch.compile(eager, dynamic=False)
    for provider, operator in (("torch_functional", functional_operator(name, options, inputs)),
                               ("liger", liger_operator(name, options, inputs))):
        if operator is not None:
            yield provider, operator
    yield from others.providers(name, options, inputs)


# --- The protocol ---


class Stopwatch:
    """Milliseconds of a call with a cold cache."""

    def __init__(self, device):
        self.device = device
        cold_bytes = 8 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 2**26
        self.cache = torch.empty(cold_bytes // 4, dtype=torch.float32, device=device)

    def run_cuda(self, repeats, prepare, call):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for begin, end in events:
            prepare()
            self.cache.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) for begin, end in events]

    def run_cpu(self, repeats, prepare, call):
        times = []
        for _ in range(repeats):
            prepare()
            self.cache.zero_()
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        return times

    def measure(self, prepare, call, warmup_ms=25.0, repeat_ms=100.0):
        run = self.run_cuda if self.device.type == "cuda" else self.run_cpu
        run(3, prepare, call)
        estimate = max(run(1, prepare, call)[0], 1e-3)
        run(max(1, min(1000, int(warmup_ms / estimate))), prepare, call)
        return statistics.median(run(max(1, min(1000, int(repeat_ms / estimate))), prepare, call))


def extent(text, n):
    if not re.fullmatch(r"[n0-9*/+]+", str(text)):
        raise ValueError(f"extent {text!r}")
    return int(eval(str(text), {"__builtins__": {}}, {"n": n}))  # checked above: n, digits, *, / and + only


def at_size(value, n):
    """Options of a suite, where a number may be written as an extent: shape: [n, n]."""
    if isinstance(value, dict):
        return {key: at_size(item, n) for key, item in value.items()}
    if isinstance(value, list):
        return [at_size(item, n) for item in value]
    is_extent = isinstance(value, str) and "n" in value and re.fullmatch(r"[n0-9*/+]+", value)
    return extent(value, n) if is_extent else value


class Subject:
    """The tensors of one config at one size, and one provider's function of them."""

    def __init__(self, operator, inputs):
        self.operator = operator
        self.inputs = inputs
        self.outputs = None
        self.upstream = None

    def forward(self):
        self.outputs = self.operator(self.inputs)

    def backward(self):
        torch.autograd.backward(self.outputs, self.upstream)

    def begin(self):
        self.forward()
        self.upstream = [torch.randn_like(output) for output in self.outputs]

    def drop_outputs(self):
        self.outputs = None

    def drop_gradients(self):
        for tensor in self.inputs.values():
            tensor.grad = None


def speed(subject, stopwatch, which):
    if which == "fwd":
        return stopwatch.measure(subject.drop_outputs, subject.forward)
    subject.drop_gradients()

    def prepare():
        subject.forward()
        if which == "bwd_first":
            subject.drop_gradients()

    subject.forward()
    subject.backward()
    return stopwatch.measure(prepare, subject.backward)


def memory(subject, which):
    subject.drop_gradients()
    total = 0
    for _ in range(20):
        subject.drop_outputs()
        if which != "fwd":
            subject.forward()
        if which == "bwd_first":
            subject.drop_gradients()
        torch.cuda.reset_peak_memory_stats()
        subject.forward() if which == "fwd" else subject.backward()
        total += torch.cuda.max_memory_allocated()
    return total / 20 / 2**20


def read_suite(suite):
    """The path of the suite's file, and what it says."""
    path = suite if suite.endswith(".yaml") else os.path.join(HERE, "../../configs/bench", suite + ".yaml")
    with open(path) as file:
        return path, yaml.safe_load(file)


def configs_of(suite, arguments):
    """Each (suite's name, config's name, config with the suite's defaults, n) of operators."""
    path, spec = read_suite(suite)
    for name, config in spec.get("configs", {}).items():
        if not arguments.config or name in arguments.config:
            for n in arguments.n or config.get("n", spec.get("n")):
                defaults = {"operator": spec.get("operator"), "dtype": spec.get("dtype", "bfloat16")}
                yield spec.get("suite", os.path.basename(path)[:-5]), name, defaults | config, n


def subjects_of(config, n, device):
    """Each (provider, Subject) of a config at one size."""
    options = at_size(config.get("options") or {}, n)
    input_dtypes, bounds = config.get("input_dtypes") or {}, config.get("index_bounds") or {}
    generator = torch.Generator(device).manual_seed(1)
    inputs = {}
    for name, extents in config["inputs"].items():
        shape = [extent(e, n) for e in extents]
        if name in bounds:
            inputs[name] = torch.randint(bounds[name], shape, device=device, generator=generator)
            continue
        exact = name in ("theta", "log_decay", "initial_state")
        dtype = input_dtypes.get(name, "float32" if exact else config["dtype"])
        tensor = torch.randn(shape, device=device, dtype=DTYPES[dtype], generator=generator)
        if name == "log_decay":
            tensor = -0.1 * tensor.abs()
        inputs[name] = tensor.requires_grad_(not exact or f"d_{name}" in config.get("moved", {}).get("bwd", []))
    for provider, operator in providers(config["operator"], options, inputs):
        yield provider, Subject(operator, inputs)


def compile_subject(config, n, device):
    for provider, subject in subjects_of(config, n, torch.device(device)):
        if provider == "torch_compile":
            subject.begin()
            subject.backward()
    if device == "cuda":
        torch.cuda.empty_cache()  # other jobs need the memory


def compile_ahead(arguments):
    """Fills torch.compile's cache on disk by --jobs processes, so that the rows, timed one by one, find it there."""
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        tasks = {}
        for suite in arguments.suites:
            for _, name, config, n in configs_of(suite, arguments):
                tasks[pool.submit(compile_subject, config, n, arguments.device)] = f"{suite} {name} n={n}"
        for count, task in enumerate(concurrent.futures.as_completed(tasks), 1):
            failed = f" failed: {task.exception()}" if task.exception() else ""
            print(f"compiled {count} of {len(tasks)}: {tasks[task]}{failed}", file=sys.stderr, flush=True)


def rows_of(suite, arguments):
    device = torch.device(arguments.device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    path, spec = read_suite(suite)
    if "training" in spec:
        yield from training.rows(path, spec, arguments, device, device_name)
        return
    stopwatch = Stopwatch(device)
    for suite_name, config_name, config, n in configs_of(suite, arguments):
        for provider, subject in subjects_of(config, n, device):
            if arguments.provider and provider not in arguments.provider:
                continue
            try:
                subject.begin()
                for which in (which for which in arguments.passes if which in config.get("passes", PASSES)):
                    for quantity in arguments.quantity:
                        value = speed(subject, stopwatch, which) if quantity == "speed" else memory(subject, which)
                        yield {"suite": suite_name, "config": config_name, "pass": which, "quantity": quantity, "n": n,
                               "dtype": config["dtype"], "device": device_name, "provider": provider, "value": value,
                               "unit": "ms" if quantity == "speed" else "MiB"}
            except Exception as error:  # one provider that fails must not end the table
                print(f"{provider} failed on {config_name}, n {n}: {error}", file=sys.stderr)
            subject.outputs = subject.upstream = None
            subject.drop_gradients()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def write_rows(path, rows):
    """Writes the rows aside and renames, so that the file is whole at any time."""
    with open(path + ".partial", "w") as file:
        json.dump(rows, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".partial", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--n", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--config", type=lambda text: text.split(","))
    parser.add_argument("--provider", type=lambda text: text.split(","))
    parser.add_argument("--passes", type=lambda text: text.split(","), default=[*PASSES, "step"])
    parser.add_argument("--quantity", type=lambda text: text.split(","), default=["speed"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--jobs", type=int, help="compile first, that many side by side; then time one by one")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu" and "memory" in arguments.quantity:
        parser.error("--quantity memory is counted on cuda only")
    if arguments.jobs and (not arguments.provider or "torch_compile" in arguments.provider):
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # of each job
        compile_ahead(arguments)
    rows = []
    for suite in arguments.suites:
        for row in rows_of(suite, arguments):
            rows.append(row)
            print("{suite} {config} {pass} {quantity} n={n} {provider}: {value:.4f} {unit}".format(**row), flush=True)
            if arguments.json:  # after each row: peers compile for minutes, and what was measured should not be lost
                write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()
