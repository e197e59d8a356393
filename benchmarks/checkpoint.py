"""Growing checkpoint folders beside a plain copy and mergekit: `python -m benchmarks.checkpoint`.

The small model is made here: a bfloat16 Llama of random weights, 16 layers of 2048 (0.85B parameters). Every
variant is a process of its own, timed from its start to its end, its peak resident memory counted by the
kernel (ru_maxrss, which counts mapped pages, too). The plain copy is `shutil.copyfile` of every file of our
result with our policy of writing: fsync of each file and of the folder. Variants run in turn; what they wrote
is deleted before the next one, and the disk is idle again (`sync`) when one starts. The source is in the page
cache for all of them, as it has just been read, and Python keeps the bytecode that the first round compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.measure import hardware, matmul_runner, provenance, ratio, summarize, versions

OUT = Path(__file__).parent / "results" / "checkpoint.json"
FULL = {"hidden": 2048, "ffn": 5632, "heads": 32, "kv_heads": 8, "vocab": 32000, "layers": 16}
QUICK = {"hidden": 128, "ffn": 352, "heads": 16, "kv_heads": 8, "vocab": 320, "layers": 16}
LAYERS = "0-11,4-15"
COPY = """
import os, pathlib, shutil, sys
source, out = map(pathlib.Path, sys.argv[1:])
out.mkdir()
for file in source.iterdir():
    shutil.copyfile(file, out / file.name)
    descriptor = os.open(out / file.name, os.O_RDONLY)
    os.fsync(descriptor)
descriptor = os.open(out, os.O_RDONLY)
os.fsync(descriptor)
"""


# a process's peak begins with that of the one that started it: a small one starts them
LAUNCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
with open(sys.argv[1], "w") as out:
    json.dump([seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime], out)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def make_small(folder: Path, sizes: dict[str, int]) -> None:
    """A Llama checkpoint of random bfloat16 weights, written tensor by tensor."""
    h, f, kv = sizes["hidden"], sizes["ffn"], sizes["hidden"] // sizes["heads"] * sizes["kv_heads"]
    layer = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f), "input_layernorm": (h,), "post_attention_layernorm": (h,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocab"], h)}
    for n in range(sizes["layers"]):
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (h,), "lm_head.weight": (sizes["vocab"], h)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            weights = torch.randn(shape, generator=rng).mul_(0.02).bfloat16()
            file.write(weights.view(torch.uint8).numpy().data)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": h,
        "intermediate_size": f, "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"], "head_dim": h // sizes["heads"],
        "num_hidden_layers": sizes["layers"], "vocab_size": sizes["vocab"], "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def measure(command: Iterable[object]) -> tuple[float, int, float]:
    """Seconds, peak resident bytes and seconds of processor time of a process.

    Raises:
        RuntimeError: when it fails.
    """
    os.sync()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.NamedTemporaryFile() as result:
        launcher = [sys.executable, "-S", "-c", LAUNCH, result.name, *map(str, command)]
        done = subprocess.run(launcher, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{launcher[5:]}: {done.stderr[-2000:]}")
        seconds, peak, busy = json.load(result)
    return seconds, peak, busy


def tensors_equal(a: Path, b: Path) -> int:
    """How many tensors two folders have, all of them equal bit for bit.

    Raises:
        SystemExit: where they differ.
    """
    from safetensors import safe_open

    def where(folder: Path) -> dict[str, Path]:
        found = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        return found

    files = where(a), where(b)
    if files[0].keys() != files[1].keys():
        sys.exit(f"tensors of one only: {sorted(files[0].keys() ^ files[1].keys())[:4]}")
    for name in files[0]:
        pair = []
        for found in files:
            with safe_open(found[name], "pt") as opened:
                pair.append(opened.get_tensor(name))
        if not torch.equal(*(t.view(torch.int16) for t in pair)):
            sys.exit(f"tensor {name} differs from mergekit's")
    return len(files[0])


def main(arguments: list[str] | None = None) -> None:
    """Run all variants in turn and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model: tries the benchmark itself")
    parser.add_argument("--mergekit", type=Path, help="the mergekit-yaml of mergekit 0.1.5")
    parser.add_argument("--mergekit-rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; 10 GB are needed for a while")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(arguments)
    machine = hardware()
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        report = run(Path(work), args)
    report |= {"hardware": machine, "versions": versions()}
    report |= provenance(sys.argv[1:] if arguments is None else arguments, "benchmarks.checkpoint")
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, r in report["ratios"].items():
        print(f"{name:44} {r['median']:6.2f}  ({r['q1']:.2f} to {r['q3']:.2f})")
    for name, peak in report["peak_bytes"].items():
        print(f"{name:44} {peak / 1e9:6.2f} GB")


def run(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peaks of every variant, and their ratios."""
    sizes, small = QUICK if args.quick else FULL, work / "small"
    make_small(small, sizes)
    wide, wider = (sizes["hidden"] * n // d for n, d in ((3, 2), (9, 8)))
    ours = [sys.executable, "-m", "ligo_fast", "grow", small]
    grown = {
        "layers": [*ours, work / "ours", "--layers", LAYERS],
        "width": [*ours, work / "ours", "--width", wide, "--method", "net2net"],
        "ligo": [*ours, work / "ours", "--width", wider, "--method", "ligo"],
    }
    plain = [sys.executable, "-S", "-c", COPY, work / "kept", work / "copy"]
    times: dict[str, list[float]] = {}
    work_done: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def timed(name: str, command: Iterable[object]) -> None:
        seconds, peak, busy = measure(command)
        times.setdefault(name, []).append(seconds)
        work_done.setdefault(name, []).append(busy)
        peaks[name] = max(peak, peaks.get(name, 0))

    facts: dict[str, Any] = {}
    size = 256 if args.quick else 3072
    products = {"matmul": matmul_runner(size), "bfloat16 matmul": matmul_runner(size, dtype=torch.bfloat16)}
    for part, command in grown.items():
        for turn in range(args.rounds + 1):  # the first one warms up and leaves its result to be copied
            if turn == 1:
                times.clear() if part == "layers" else [times.pop(k, None) for k in (part, f"{part} copy")]
            for name, (product, _) in products.items() if part == "ligo" else ():
                product()
                start = perf_counter()
                product()
                times.setdefault(name, []).append(perf_counter() - start)
            timed(part, command)
            if turn == 0:
                (work / "ours").rename(work / "kept")
                facts[part] = _facts(work / "kept")
            else:
                shutil.rmtree(work / "ours")
            timed(f"{part} copy", plain)
            shutil.rmtree(work / "copy")
            if part == "layers" and args.mergekit and 1 <= turn <= args.mergekit_rounds:
                timed("mergekit", _mergekit(args.mergekit, work, sizes["layers"]))
                facts["equal_tensors"] = tensors_equal(work / "kept", work / "mergekit")
                shutil.rmtree(work / "mergekit")
        shutil.rmtree(work / "kept")
    work_of_ligo = _ligo_flops(small, wider)
    floors = {n: work_of_ligo * min(times[n]) / flops for n, (_, flops) in products.items()}
    facts["ligo"]["floor_seconds"] = floors["matmul"]
    facts["ligo"]["bfloat16_floor_seconds"] = floors["bfloat16 matmul"]
    ratios = {
        "layers / copy": ratio(times["layers"], times["layers copy"]),
        "width / copy": ratio(times["width"], times["width copy"]),
        "ligo / matmul floor": ratio(times["ligo"], [floors["matmul"]] * len(times["ligo"])),
        "ligo / bfloat16 matmul floor": ratio(
            times["ligo"], [floors["bfloat16 matmul"]] * len(times["ligo"])
        ),
    }
    if "mergekit" in times:
        count = len(times["mergekit"])
        ratios["mergekit / layers"] = ratio(times["mergekit"], times["layers"][:count])
        ratios["mergekit / copy"] = ratio(times["mergekit"], times["layers copy"][:count])
    return {
        "quick": args.quick,
        "sizes": sizes,
        "widths": {"width": wide, "ligo": wider},
        "seconds": {name: summarize(t) | {"all": t} for name, t in times.items()},
        "processor_seconds": {name: summarize(t) for name, t in work_done.items()},
        "peak_bytes": peaks,
        "ratios": ratios,
        "results": facts,
        "mergekit": _mergekit_version(args.mergekit) if args.mergekit else None,
    }


def _facts(folder: Path) -> dict[str, Any]:
    return {
        "bytes": sum(f.stat().st_size for f in folder.iterdir()),
        "parameters": json.loads((folder / "growth.json").read_text())["parameters"],
    }


def _ligo_flops(small: Path, width: int) -> int:
    """Multiplications and additions of the learned width growth."""
    from ligo_fast.checkpoint import plan_growth

    return plan_growth(small, width=width, method="ligo").op.flops()


def _mergekit(program: Path, work: Path, layers: int) -> list[object]:
    """The command of the same passthrough merge; layer_range has no end."""
    half = layers // 4
    slices = [(0, layers - half), (half, layers)]
    lines = ["slices:"]
    for a, b in slices:
        lines += ["  - sources:", f"      - model: {work / 'small'}", f"        layer_range: [{a}, {b}]"]
    lines += ["merge_method: passthrough", "dtype: bfloat16", ""]
    (work / "merge.yml").write_text("\n".join(lines))
    return [program, work / "merge.yml", work / "mergekit", "--no-copy-tokenizer"]


def _mergekit_version(program: Path) -> str:
    code = "from importlib.metadata import version as v; print(v('mergekit'), 'torch', v('torch'))"
    return subprocess.run(
        [program.parent / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
