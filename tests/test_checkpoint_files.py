"""Bad folders are one line, and nothing is left behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch

import ligo_fast as lf
from ligo_fast.checkpoint import grow_checkpoint, open_checkpoint


@pytest.fixture
def small(tmp_path):
    """A sound folder."""
    models.build("llama-lm").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def sharded(tmp_path):
    """A sound folder of several shards."""
    models.build("llama-lm").save_pretrained(tmp_path / "small", max_shard_size="3KB")
    return tmp_path / "small"


def refused(small: Path, *words: str, **how) -> None:
    """Growing is one line with these words, and nothing is there that was not."""
    before = sorted(p for p in small.parent.rglob("*"))
    with pytest.raises(lf.GrowthError) as error:
        grow_checkpoint(small, small.parent / "out", **({"depth": 4} | how))
    assert "\n" not in str(error.value)
    assert [w for w in words if w not in str(error.value)] == [], error.value
    assert sorted(p for p in small.parent.rglob("*")) == before


def edit_header(file: Path, change) -> None:
    """Rewrite a header; `change` gets its text and returns another."""
    content = file.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    text = change(content[8 : 8 + n].decode()).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :])


def edit_fields(file: Path, change) -> None:
    """Rewrite a header; `change` edits its object in place."""

    def rewrite(text: str) -> str:
        fields = json.loads(text)
        change(fields)
        return json.dumps(fields)

    edit_header(file, rewrite)


def edit_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


NORM = "model.norm.weight"


def test_truncated(small):
    file = small / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused(small, "model.safetensors", "reach past")


def test_bytes_behind_the_last_tensor(small):
    file = small / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"1234")
    refused(small, "model.safetensors", "end at byte")


@pytest.mark.parametrize("length", [2**60, 2**63, 10**9])
def test_a_header_that_claims_too_much(small, length):
    file = small / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(small, "model.safetensors", f"claims {length} bytes")


@pytest.mark.parametrize("content", [b"", b"123", b"PK\x03\x04pickle" * 9])
def test_no_safetensors_at_all(small, content):
    (small / "model.safetensors").write_bytes(content)
    refused(small, "model.safetensors")


def test_overlapping_offsets(small):
    def change(fields):
        fields[NORM]["data_offsets"] = [0, 64]

    edit_fields(small / "model.safetensors", change)
    refused(small, "model.safetensors", "data_offsets", "overlaps")


def test_a_shape_of_2_to_the_60(small):
    edit_fields(small / "model.safetensors", lambda f: f[NORM].update(shape=[2**60]))
    refused(small, NORM, "shape", str(2**60))


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [-16]), ("shape", "16"), ("shape", [16.0]), ("data_offsets", [64, 0]), ("dtype", "C64"),
     ("data_offsets", [0, 64, 64]), ("shape", [True]), ("dtype", ["F32"])],
)  # fmt: skip
def test_fields_that_make_no_sense(small, field, value):
    edit_fields(small / "model.safetensors", lambda f: f[NORM].update({field: value}))
    refused(small, NORM, field)


def test_a_name_twice(small):
    def change(text: str) -> str:
        entry = json.dumps({NORM: json.loads(text)[NORM]})
        return entry[:-1] + "," + text.lstrip()[1:]

    edit_header(small / "model.safetensors", change)
    refused(small, "model.safetensors", NORM, "twice")


def test_deeply_nested_and_broken_json(small):
    edit_header(small / "model.safetensors", lambda text: "[" * 100_000)
    refused(small, "model.safetensors", "not JSON")
    edit_header(small / "model.safetensors", lambda text: "[1]")
    refused(small, "model.safetensors", "not an object")


def test_pickled_weights_are_never_opened(small):
    (small / "model.safetensors").rename(small / "pytorch_model.bin")
    refused(small, "pytorch_model.bin", "pickled")


def test_a_folder_without_weights_or_config(small, tmp_path):
    (small / "model.safetensors").unlink()
    refused(small, "neither")
    (small / "config.json").unlink()
    refused(small, "config.json", "No such file")
    refused(tmp_path / "nowhere", "no folder")


@pytest.mark.parametrize("path", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7])
def test_an_index_that_leaves_the_folder(sharded, path):
    index = sharded / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weights | {NORM: path})
    refused(sharded, "index.json", NORM, repr(path), "no file name")


def test_an_index_that_names_pickles(sharded):
    index = sharded / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=weights | {NORM: "pytorch_model.bin"})
    refused(sharded, "index.json", "no safetensors file")


def test_an_index_that_is_wrong(sharded):
    index = sharded / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    other = next(f for f in weights.values() if f != weights[NORM])
    edit_json(index, weight_map=weights | {NORM: other})
    refused(sharded, NORM, "the index")
    edit_json(index, weight_map={n: f for n, f in weights.items() if n != NORM})
    refused(sharded, NORM, "the index does not have it")
    edit_json(index, weight_map={})
    refused(sharded, "weight_map")
    edit_json(index, weight_map=weights)
    (sharded / other).unlink()
    refused(sharded, other, "missing")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 3}, ["2 times", "3"]),
        ({"intermediate_size": 13}, ["ffn", "12", "13"]),
        ({"vocab_size": 20}, ["vocab", "19", "vocab_size=20"]),
        ({"hidden_size": "16"}, ["config.json", "hidden_size", "'16'"]),
        ({"hidden_size": None}, ["config.json", "no hidden_size"]),
        ({"num_key_value_heads": -2}, ["config.json", "num_key_value_heads"]),
        ({"rms_norm_eps": None}, ["config.json", "rms_norm_eps"]),
        ({"model_type": "cobol"}, ["config.json", "model_type", "cobol"]),
        ({"model_type": None}, ["config.json", "model_type"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight", "tie_word_embeddings"]),
    ],
)
def test_a_config_that_disagrees_with_the_tensors(small, values, words):
    edit_json(small / "config.json", **values)
    refused(small, *words)


def test_a_head_that_is_missing(small):
    models.build("llama-tied").save_pretrained(small)
    edit_json(small / "config.json", tie_word_embeddings=False)
    refused(small, "tie_word_embeddings=false")
    edit_json(small / "config.json", tie_word_embeddings=True, architectures=None)
    refused(small, "architectures")


@pytest.mark.parametrize("how", [{"depth": 4}, {"width": 32, "method": "ligo"}], ids=["moved", "mixed"])
def test_values_too_large_for_float16(how, tmp_path):
    model = models.build("llama-lm")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "small")
    refused(tmp_path / "small", "mlp.up_proj.weight", "float16's 65504", dtype="float16", **how)


def test_a_class_that_may_have_a_head(tmp_path):
    """Of a tied head no tensor tells."""
    models.build("gpt2-lm").save_pretrained(tmp_path / "small")
    edit_json(tmp_path / "small" / "config.json", architectures=["GPT2Foo"])
    refused(tmp_path / "small", "architectures", "'GPT2Foo'", "tie_word_embeddings")


def test_a_tensor_that_no_row_covers(small):
    edit_header(small / "model.safetensors", lambda text: text.replace(NORM, "model.nurm.weight"))
    refused(small, "model.nurm.weight", "no row")


def test_sizes_and_options_that_do_not_fit(small, tmp_path):
    refused(small, "width", depth=None)
    refused(small, "axis ffn", width=18)
    refused(small, "axis layer", depth=1)
    refused(small, "dtype", dtype="int8")
    refused(small, "unknown method", method="nix")
    refused(small, "must be a width method", depth=None, layers="0-1,0-1", method="net2net+stack")
    refused(small, "3 layers chosen, depth says 4", layers="0-1,1")
    for layers in ("a-b", "", "0-1,", [0, 1]):
        refused(small, f"layers {layers!r}", "0-11,4-15", depth=None, layers=layers)
    refused(small, "runs backwards", depth=None, layers="1-0")
    for width in (None, 32):
        refused(small, "n_inner is not one of net2net+stack's", width=width, method="net2net", n_inner=4)
    refused(small, "form is not one of random+stack's", form="dense")
    refused(small, "shard size 'many'", shard_size="many")
    refused(small, "shard size 0", shard_size=0)
    edit_json(small / "config.json")
    (tmp_path / "t.json").write_text(
        json.dumps({**json.loads((small / "config.json").read_text()), "vocab_size": 9})
    )
    refused(small, "vocab_size", depth=None, target=tmp_path / "t.json")


def test_places_that_are_taken(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    refused(small, "not empty")
    refused(small, "no checkpoint", "config.json", overwrite=True)
    assert (tmp_path / "out" / "precious").read_text() == "kept"
    with pytest.raises(lf.GrowthError, match="source's folder"):
        grow_checkpoint(small, small / "inside", depth=4)
    with pytest.raises(lf.GrowthError, match="source's folder"):
        grow_checkpoint(small, small, depth=4, overwrite=True)
    with pytest.raises(lf.GrowthError, match="parent folder"):
        grow_checkpoint(small, tmp_path / "a" / "b", depth=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(lf.GrowthError, match="a file is there"):
        grow_checkpoint(small, tmp_path / "file", depth=4, overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"name": "my web app"}', ["no checkpoint", "no model_type"]),
        ("model.safetensors", None, ["no checkpoint", "no model.safetensors"]),
        ("src/thesis.txt", "years", ["src in it"]),
        ("thesis.txt", "years", ["thesis.txt in it"]),
        ("trainer_state.json", "{}", ["trainer_state.json in it"]),
        ("optimizer.pt", "", ["optimizer.pt in it"]),
        ("operator.safetensors", "", ["operator.safetensors in it"]),
        (".git/HEAD", "", [".git in it"]),
    ],
)
def test_only_a_checkpoint_is_overwritten(small, tmp_path, name, content, words):
    """What no growth writes or copies is never deleted, whatever lies beside it."""
    out = tmp_path / "out"
    grow_checkpoint(small, out, depth=4)
    grow_checkpoint(small, out, depth=6, overwrite=True)
    file = out / name
    if content is None:
        file.unlink()
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    refused(small, *words, overwrite=True)
    assert content is None or file.read_text() == content


def test_a_file_that_comes_while_growing_is_kept(small, tmp_path):
    out = tmp_path / "out"
    grow_checkpoint(small, out, depth=4)
    with pytest.raises(lf.GrowthError, match=r"notes.txt in it"):
        grow_checkpoint(
            small, out, depth=6, overwrite=True, progress=lambda n: (out / "notes.txt").write_text("kept")
        )
    assert (out / "notes.txt").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "small"]


def test_free_space_is_looked_at_first(small, monkeypatch):
    real = os.statvfs(small)
    few = os.statvfs_result([real.f_bsize, 1, 9, 9, 9, *list(real)[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    refused(small, "bytes are needed, 9 are free")


GROW = """
import os, resource, sys
from ligo_fast.checkpoint import grow_checkpoint
small, out, how = sys.argv[1:]
if how == "small files":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
elif how == "nobody" and os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
if how == "full":  # what statvfs says may be out of date when it is needed
    real = os.statvfs
    os.statvfs = lambda path: real("/")
grow_checkpoint(small, out, depth=8)
"""


def run(small: Path, out: Path, how: str, *wrapper: str) -> str:
    command = [*wrapper, sys.executable, "-c", GROW, str(small), str(out), how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_disk_that_takes_no_more(small, tmp_path):
    line = run(small, tmp_path / "out", "small files")
    assert "model.safetensors" in line and "File too large" in line
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_a_full_disk(small, tmp_path):
    """A tmpfs of 16 KB, mounted in a namespace of its own, in which the failed run has to clean up."""
    (tmp_path / "disk").mkdir()
    disk = tmp_path / "disk"
    script = f'mount -t tmpfs -o size=16k tmpfs {disk} && "$@"; code=$?; ls -A {disk}; exit $code'
    wrapper = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("no user may mount a tmpfs here; RLIMIT_FSIZE above fails at the same place")
    command = [*wrapper, sys.executable, "-c", GROW, str(small), f"{disk}/out", "full"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert done.stdout == ""  # nothing was left


def test_a_place_that_may_not_be_written_to(small, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):  # for `nobody`, as whom root's test runs
        if os.stat(folder).st_uid == os.getuid() and str(folder) not in ("/", "/tmp"):
            folder.chmod(0o755)
    for file in small.iterdir():
        file.chmod(0o644)
    assert "Permission denied" in run(small, tmp_path / "locked" / "out", "nobody")
    assert not any((tmp_path / "locked").iterdir())


def test_an_odd_but_legal_file_is_read(small, tmp_path):
    """Data that begins at an odd address, names in any order, a tensor without elements."""
    file = small / "model.safetensors"
    edit_header(file, lambda text: text.rstrip() + " " * (1 + len(text.rstrip()) % 2))
    assert len(open_checkpoint(small).entries) == 21
    grow_checkpoint(small, tmp_path / "odd", width=32, method="net2net")
    edit_header(file, lambda text: text.rstrip() + " " * (-len(text.rstrip()) % 8))
    grow_checkpoint(small, tmp_path / "even", width=32, method="net2net")
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("odd", "even")]
    assert files[0] == files[1]


def test_old_names_and_buffers_of_old_files(tmp_path):
    model = models.build("gpt2-lm")
    small = tmp_path / "small"
    model.save_pretrained(small)
    edit_header(small / "model.safetensors", lambda text: text.replace('"transformer.', '"'))
    entry = {"h.0.attn.bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    edit_fields(small / "model.safetensors", lambda fields: fields.update(entry))
    grow_checkpoint(small, tmp_path / "out", depth=4)
    names = set(open_checkpoint(tmp_path / "out").entries)
    assert "h.3.ln_1.weight" in names and "h.0.attn.bias" not in names
    large = type(model).from_pretrained(tmp_path / "out")
    want = lf.grow(model, depth=4, method="stack")
    assert all((a == b).all() for a, b in zip(large.parameters(), want.parameters(), strict=True))


def test_a_config_in_place_of_its_file(tmp_path):
    model = models.build("gpt2-lm")
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(lf.GrowthError, match=r"target=GPT2Config: the path of a config\.json"):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", target=model.config)
    assert not (tmp_path / "out").exists()
