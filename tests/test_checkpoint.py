"""Folders grown file to file are what `lf.grow` makes in memory, bit for bit, and load at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import models
import pytest
import torch
import transformers
from safetensors import safe_open

import ligo_fast as lf
from ligo_fast.checkpoint import grow_checkpoint, load_operator, plan_growth, save_operator, stream, units
from ligo_fast.checkpoint.device import Direct, Staged, read_device
from ligo_fast.checkpoint.operators import read_operator
from ligo_fast.compute import products
from ligo_fast.errors import VerifyError

transformers.utils.logging.disable_progress_bar()
METHODS = ("stack", "net2net+interpolate", "aki", "pad+zero", "ligo", "tile+ligo")
NAMES = ("gpt2-lm", "gpt2", "bert-mlm", "llama-lm", "llama-tied", "qwen3-lm", "vit-class", "deit")


def saved(name: str, folder: Path, **options):
    """A tiny model and its folder; the model as it is loaded from there."""
    dtype = options.pop("dtype", torch.float32)
    model = models.build(name, dtype=dtype)
    model.save_pretrained(folder, **options)
    return type(model).from_pretrained(folder, dtype=dtype)


def width_of(model) -> int:
    return 2 * getattr(model.config, "n_embd", None or getattr(model.config, "hidden_size", 0))


def check_same(folder: Path, want) -> None:
    """The folder loads without a missing or superfluous tensor and equals a model bit for bit."""
    got, loading = type(want).from_pretrained(folder, dtype=want.dtype, output_loading_info=True)
    assert not any(loading.values()), loading
    a, b = want.state_dict(), got.state_dict()
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    ours, theirs = got.config.to_dict(), want.config.to_dict()
    differing = {k for k in theirs if ours.get(k) != theirs[k]}
    assert differing <= {"architectures", "_name_or_path", "transformers_version", "dtype"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_a_grown_folder_is_the_model_grown_in_memory(name, method, tmp_path):
    small = saved(name, tmp_path / "small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = lf.grow(small, width=width_of(small), depth=4, method=method, seed=3)
    grow_checkpoint(
        tmp_path / "small",
        tmp_path / "out",
        width=width_of(small),
        depth=4,
        method=method,
        seed=3,
        check=True,
    )
    check_same(tmp_path / "out", want)


@pytest.mark.parametrize("method", ["tile+identity", "pad+identity"])
def test_noise_in_files_leaves_new_layers_at_zero(method, tmp_path):
    small = saved("gpt2-lm", tmp_path / "small", dtype=torch.float64)
    how = {"width": width_of(small), "depth": 4, "method": method, "noise": 0.5}
    grow_checkpoint(tmp_path / "small", tmp_path / "out", **how)
    large = type(small).from_pretrained(tmp_path / "out", dtype=torch.float64)
    batch = models.make_batch("gpt2-lm")
    with torch.no_grad():
        torch.testing.assert_close(models.output(large, batch), models.output(small, batch))


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm"])
def test_noise_does_not_depend_on_the_order_of_parameters(name, tmp_path):
    """In memory, in one file and in shards they come in another order each."""
    small = saved(name, tmp_path / "one")
    small.save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    how = {"width": width_of(small), "depth": 4, "method": "net2net+stack", "noise": 0.5, "seed": 3}
    want = lf.grow(small, **how)
    for source in ("one", "shards"):
        grow_checkpoint(tmp_path / source, tmp_path / "out", **how)
        check_same(tmp_path / "out", want)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["net2net+stack", "ligo"])
def test_other_dtypes_and_shards(dtype, method, tmp_path):
    small = saved("llama-lm", tmp_path / "small", dtype=dtype, max_shard_size="3KB")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = lf.grow(small, width=32, depth=3, method=method)
    grow_checkpoint(tmp_path / "small", tmp_path / "out", width=32, depth=3, method=method, shard_size=9000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    check_same(tmp_path / "out", want)


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm", "vit-class"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_families_written_in_many_parts(name, dtype, tmp_path, monkeypatch):
    """Blocks of rows and of columns, of fused parameters, too, written a few values at a time."""
    small = saved(name, tmp_path / "small", dtype=dtype)
    monkeypatch.setattr(products, "BLOCK_BYTES", 600)
    monkeypatch.setattr(stream, "BATCH_BYTES", 500)
    real, windows = stream.Files.write, []

    def write(self, t, entry, folder, window=None):
        windows.append((window, tuple(t.shape)))
        real(self, t, entry, folder, window)

    monkeypatch.setattr(stream.Files, "write", write)
    for width, method in ((width_of(small), "ligo"), (3 * width_of(small), "ligo")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want = lf.grow(small, width=width, depth=3, method=method)
        out = tmp_path / f"out{width}"
        grow_checkpoint(tmp_path / "small", out, width=width, depth=3, method=method, check=True)
        check_same(out, want)
    strided = [w for w, shape in windows if len(shape) == 2 and shape[1] < w.width and shape[0] > 1]
    assert len(strided) > 3 and len(windows) > 200


@pytest.mark.parametrize(
    ("fault", "said"), [("moved", "is not what was grown"), ("skipped", "bytes were written")]
)
def test_a_part_that_is_not_written_as_grown_is_noticed(fault, said, tmp_path, monkeypatch):
    saved("gpt2-lm", tmp_path / "small")
    real = stream.Files.write

    def write(self, t, entry, folder, window=None):
        if window is not None and fault == "moved":
            window = dataclasses.replace(window, row=0)
        real(self, t, entry, folder, window)

    def blocks(self, unit, small, dtype, real=units.Runner.blocks):
        first, *rest = real(self, unit, small, dtype)
        yield from rest if fault == "skipped" and rest else (first, *rest)

    monkeypatch.setattr(products, "BLOCK_BYTES", 600)
    monkeypatch.setattr(stream, "BATCH_BYTES", 500)
    monkeypatch.setattr(stream.Files, "write", write)
    monkeypatch.setattr(units.Runner, "blocks", blocks)
    with pytest.raises(VerifyError, match=said):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16, method="ligo", check=True)
    assert not (tmp_path / "out").exists()


def test_without_the_compiled_code_the_result_is_the_same(tmp_path, monkeypatch):
    saved("gpt2-lm", tmp_path / "small")
    how = {"width": 16, "depth": 4, "method": "aki+zero"}
    grow_checkpoint(tmp_path / "small", tmp_path / "a", **how)
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    grow_checkpoint(tmp_path / "small", tmp_path / "b", **how)
    files = [(tmp_path / d / "model.safetensors").read_bytes() for d in "ab"]
    assert files[0] == files[1]


def test_another_dtype_is_a_cast_of_the_grown_weights(tmp_path):
    small = saved("gpt2-lm", tmp_path / "small")
    want = lf.grow(small, width=16, method="net2net").to(torch.bfloat16)
    grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16, method="net2net", dtype="bfloat16")
    check_same(tmp_path / "out", want)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_layers_by_hand_are_a_passthrough_merge(tmp_path):
    small = saved("llama-lm", tmp_path / "small")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", layers="0-1,0,1-1,0")
    large = type(small).from_pretrained(tmp_path / "out")
    state = small.state_dict()
    for n, j in enumerate([0, 1, 0, 1, 0]):
        for name, p in large.model.layers[n].named_parameters():
            assert torch.equal(p, state[f"model.layers.{j}.{name}"])
    assert torch.equal(large.lm_head.weight, small.lm_head.weight)
    check_same(tmp_path / "out", lf.grow(small, depth=5, method="0-1,0,1-1,0"))


def test_layers_can_change_places():
    small = models.build("gpt2-lm")
    large = lf.grow(small, depth=2, method="1,0")
    assert torch.equal(large.transformer.h[0].ln_1.weight, small.transformer.h[1].ln_1.weight)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("0-5", ["layer 5", "0 to 1"]),
        ("1-0", ["backwards"]),
        ("0,1", ["2 layers", "6"]),
        ("nix+0-1", ["nix"]),
    ],
)
def test_layers_that_do_not_fit(method, words):
    with pytest.raises(lf.GrowthError) as error:
        lf.grow(models.build("gpt2-lm"), depth=6, method=method)
    assert all(word in str(error.value) for word in words)


def test_a_target_config_says_the_sizes(tmp_path):
    small = saved("bert", tmp_path / "small")
    config = small.config.to_dict() | {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 30}
    config["architectures"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    target = type(small.config).from_dict(config)
    want = lf.grow(small, target=target, method="net2net")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", target=tmp_path / "config.json", method="net2net")
    check_same(tmp_path / "out", want)


@pytest.mark.parametrize("name", ["gpt2-lm", "qwen3-lm"])
def test_an_operator_learned_here_is_applied_there(name, tmp_path):
    small = saved(name, tmp_path / "small")
    target = lf.grow(small, width=width_of(small), depth=4, method="stack")
    op = lf.GrowthOperator(small, target, method="ligo", seed=5, width_init="selection")
    with torch.no_grad():
        for p in op.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    op.apply_()
    save_operator(op, tmp_path / "learned.safetensors")
    again = load_operator(tmp_path / "learned.safetensors", small, lf.grow(small, target=target.config))
    assert all(torch.equal(a, b) for a, b in zip(op.parameters(), again.parameters(), strict=True))
    record = grow_checkpoint(tmp_path / "small", tmp_path / "out", operator=tmp_path / "learned.safetensors")
    check_same(tmp_path / "out", target)
    assert record["seed"] == 5 and record["operator"]["name"] == "learned.safetensors"


def test_a_fixed_operator_is_saved_by_its_method(tmp_path):
    small = saved("gpt2-lm", tmp_path / "small")
    op = lf.GrowthOperator(small, lf.grow(small, width=24, method="net2net", seed=7), "net2net", seed=7)
    save_operator(op, tmp_path / "op.safetensors")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", operator=tmp_path / "op.safetensors")
    check_same(tmp_path / "out", op.apply_())


def test_operators_that_do_not_fit(tmp_path):
    small = saved("gpt2-lm", tmp_path / "small")
    op = lf.GrowthOperator(small, models.build("gpt2-lm", n_embd=16, n_head=4, n_inner=24), "ligo")
    file = tmp_path / "op.safetensors"
    save_operator(op, file)
    with pytest.raises(lf.GrowthError, match="axis embed: the operator was made for a target of 16"):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", operator=file, width=24)
    for said in ({"method": "stack"}, {"layers": "0-1"}, {"seed": 0}, {"noise": 0.0}, {"form": "dense"}):
        with pytest.raises(
            lf.GrowthError, match=f"the operator says the method; leave out {next(iter(said))}"
        ):
            grow_checkpoint(tmp_path / "small", tmp_path / "out", operator=file, **said)
    saved("bert", tmp_path / "bert")
    with pytest.raises(lf.GrowthError, match="'gpt2'"):
        grow_checkpoint(tmp_path / "bert", tmp_path / "out", operator=file)
    with pytest.raises(lf.GrowthError, match="not a growth operator"):
        load_operator(tmp_path / "small" / "model.safetensors", small, small)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(lf.GrowthError, match="reach past"):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", operator=file)
    assert not (tmp_path / "out").exists()


def test_what_lies_beside_the_weights(tmp_path):
    saved("gpt2-lm", tmp_path / "small")
    for name in ("tokenizer.json", "merges.txt", "training_args.bin", "trainer_state.json", "README.md"):
        (tmp_path / "small" / name).write_text("{}")
    record = grow_checkpoint(tmp_path / "small", tmp_path / "out", depth=4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "growth.json", "merges.txt",
        "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert record == json.loads((tmp_path / "out" / "growth.json").read_text())
    assert {"method", "seed", "versions", "maps_sha256", "source"} <= record.keys()
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()
    again = grow_checkpoint(tmp_path / "out", tmp_path / "more", depth=8)
    assert again["source"]["growth"] == record
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_source_in_the_hubs_cache_has_its_repositorys_name(tmp_path):
    snapshot = tmp_path / "models--some-one--a-model" / "snapshots" / "0123456789abcdef"
    saved("gpt2-lm", snapshot)
    record = grow_checkpoint(snapshot, tmp_path / "out", depth=4)
    assert record["source"]["name"] == "some-one/a-model"
    assert "# some-one/a-model, grown" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("method", "said"), [("ligo", "ligo"), ("random", "random"), ("tile", "tile+stack")])
def test_a_method_of_both_is_named_once(method, said, tmp_path):
    small = saved("gpt2-lm", tmp_path / "small")
    assert grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16, method=method)["method"] == said
    op = lf.GrowthOperator(small, models.build("gpt2-lm", n_embd=16, n_head=4, n_inner=24), method)
    save_operator(op, tmp_path / "op.safetensors")
    assert read_operator(tmp_path / "op.safetensors").method == said


def test_layer_types_follow_their_layers(tmp_path):
    model = models.build(
        "qwen2-lm", layer_types=["full_attention", "sliding_attention"], use_sliding_window=True
    )
    model.save_pretrained(tmp_path / "small")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", layers="0,0,1")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    with pytest.raises(lf.GrowthError, match="layer_types"):
        grow_checkpoint(tmp_path / "small", tmp_path / "no", depth=4, method="ligo")


@pytest.mark.parametrize("name", NAMES)
def test_new_weights_are_those_of_a_constructor(name, tmp_path):
    """Ones and zeros where transformers has them, else its standard deviation."""
    model = saved(name, tmp_path / "small")
    grow_checkpoint(
        tmp_path / "small", tmp_path / "out", width=8 * width_of(model), depth=8, method="scratch", seed=3
    )
    ours = type(model).from_pretrained(tmp_path / "out")
    torch.manual_seed(0)
    theirs = dict(type(model)(ours.config).named_parameters())
    for name, p in ours.named_parameters():
        q = theirs[name]
        if q.numel() < 2 or bool((q == q.flatten()[0]).all()):
            assert torch.equal(p, q), name
        else:
            assert float(p.detach().std()) == pytest.approx(float(q.detach().std()), rel=0.2), name
            assert abs(float(p.detach().mean())) < 5 * float(q.detach().std()) / p.numel() ** 0.5, name


@pytest.mark.parametrize("method", ["random+stack", "random", "identity", "random+interpolate"])
def test_fresh_units_stand_beside_the_old_ones(method, tmp_path, monkeypatch):
    """What the method writes is what it writes in memory; the rest depends on the seed and the name alone."""
    small = saved("gpt2-lm", tmp_path / "small")
    torch.manual_seed(0)
    pair = [lf.grow(small, width=16, depth=4, method=method, seed=seed).state_dict() for seed in (1, 2)]
    how = {"width": 16, "depth": 4, "method": method}
    grow_checkpoint(tmp_path / "small", tmp_path / "a", seed=1, shard_size=2000, **how)
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    grow_checkpoint(tmp_path / "small", tmp_path / "b", seed=1, **how)
    a, b = (type(small).from_pretrained(tmp_path / d).state_dict() for d in "ab")
    kept = 0
    for name, w in a.items():
        assert torch.equal(w, b[name]), name
        written = pair[0][name] == pair[1][name]
        torch.testing.assert_close(w[written], pair[0][name][written], rtol=1e-6, atol=0)
        kept += int((~written).sum())
        assert not (w[~written] == pair[0][name][~written]).any()
    assert kept > 100
    grow_checkpoint(tmp_path / "small", tmp_path / "c", seed=2, **how)
    other = type(small).from_pretrained(tmp_path / "c").state_dict()
    assert any(not torch.equal(other[name], w) for name, w in a.items())


def test_fresh_units_are_what_nothing_said_gives(tmp_path):
    saved("gpt2-lm", tmp_path / "small")
    assert grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16)["method"] == "random+stack"


def test_options_go_to_the_method_that_takes_them(tmp_path):
    """A depth method's, too, where the width grows."""
    small = saved("llama-lm", tmp_path / "small")
    how = {"width": 32, "depth": 4, "method": "net2net+ligo", "depth_init": "interpolate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = lf.grow(small, **how)
    grow_checkpoint(tmp_path / "small", tmp_path / "out", shard_size="9KB", **how)
    check_same(tmp_path / "out", want)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


def test_a_list_of_layers_grows_the_width_afresh_unless_it_is_said(tmp_path):
    saved("llama-lm", tmp_path / "small")
    how = {"layers": "0-1,0-1", "width": 32}
    default = grow_checkpoint(tmp_path / "small", tmp_path / "a", **how)
    assert default["method"] == "random+0-1,0-1"
    said = grow_checkpoint(tmp_path / "small", tmp_path / "b", method="random+stack", width=32, depth=4)
    assert said["method"] == "random+stack"
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert grow_checkpoint(tmp_path / "small", tmp_path / "c", method="copy", **how)["method"][:5] == "copy+"


def test_a_staged_device_writes_the_same(tmp_path, monkeypatch):
    saved("gpt2-lm", tmp_path / "small")
    monkeypatch.setattr(stream, "BATCH_BYTES", 600)
    for method in ("aki", "ligo", "random"):
        plan = plan_growth(tmp_path / "small", width=16, depth=4, method=method)
        for name, make in (("a", Direct), ("b", lambda op: Staged(op, torch.device("cpu")))):
            (tmp_path / method / name).mkdir(parents=True)
            stream.write_shards(
                make(plan.op),
                plan.units,
                plan.source.weights,
                plan.shards,
                tmp_path / method / name,
                lambda n: None,
            )
        files = [(tmp_path / method / d / "model.safetensors").read_bytes() for d in "ab"]
        assert files[0] == files[1]


def test_devices_that_are_not_there():
    for name, words in (("cuda:99", "GPUs"), ("meta", "neither"), ("abacus", "abacus")):
        with pytest.raises(lf.GrowthError, match=words):
            read_device(name)


def test_units_are_one_tensor_or_one_family(tmp_path):
    saved("llama-lm", tmp_path / "small")
    for method, most in (("net2net+stack", 1), ("ligo", 4)):
        made = units.make_units(plan_growth(tmp_path / "small", width=32, depth=4, method=method).op)
        assert max(len(u.large) for u in made) == most
        names = [n for u in made for n in u.large]
        assert len(names) == len(set(names)) == 39


LIMITED = """
import resource, sys, threading
import torch
from ligo_fast.compute import products
from ligo_fast.checkpoint import grow_checkpoint, stream

torch.set_num_threads(1)
threading.stack_size(1 << 20)
stream.BATCH_BYTES = products.BLOCK_BYTES = 2 << 20

def anonymous():
    with open("/proc/self/status") as f:
        rows = dict(line.split(":", 1) for line in f)
    return tuple(int(rows[k].split()[0]) << 10 for k in ("VmData", "VmRSS", "RssAnon"))

small, out, method, megabytes = sys.argv[1:]
grow_checkpoint(small, out + "-warm", depth=3, method="stack")  # threads and pools are there
data, rss, anon = anonymous()
limit = int(megabytes) << 20
# private memory, and what may be mapped beside it: everything that a process can hold
resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
with open("/proc/self/statm") as f:
    size = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + limit, size + limit))
most = [0, 0]
def look(done):
    now = anonymous()
    most[:] = [max(most[0], now[1] - rss), max(most[1], now[2] - anon)]
grow_checkpoint(small, out, width=512, depth=24, method=method, progress=look)
print(most[0], most[1])
"""


@pytest.mark.parametrize("method", ["net2net+stack", "copy+stack", "ligo"])
def test_a_model_four_times_the_memory_goes_through(method, tmp_path):
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32,
             "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 3200}  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "small")
    megabytes = 45
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "small"), str(tmp_path / "out"), method]
    done = subprocess.run([*command, str(megabytes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    resident, anonymous = map(int, done.stdout.split())
    nbytes = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert nbytes > 4 * (megabytes << 20)
    assert resident < megabytes << 20 and anonymous < megabytes << 19
