"""Hashes of files, made in a thread."""

from __future__ import annotations

import hashlib
import os
import time

import models
import pytest

import ligo_fast as lf
from ligo_fast import hashing
from ligo_fast.checkpoint import grow_checkpoint


@pytest.mark.parametrize("size", [0, 1, 64, 1000])
def test_a_hash_is_that_of_the_whole_file(size, tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 64)
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(size))
    with hashing.Hashes() as hashes:
        hashes.begin_folder(tmp_path)
        found = hashes.of([file])
    assert found == {"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_what_is_not_done_in_time_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(50 << 20))
    start = time.monotonic()
    with hashing.Hashes() as hashes:
        hashes.begin_folder(tmp_path)
    assert time.monotonic() - start < 5  # 50 million reads take a minute


def test_folders_and_files_that_are_not_there(tmp_path):
    with hashing.Hashes() as hashes:
        hashes.begin_folder(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            hashes.of([tmp_path / "none"])


def test_a_source_that_changes_is_an_error_and_nothing_is_left(tmp_path):
    models.build("llama-lm").save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"

    def touch(_):
        os.utime(file, ns=(1, 1))

    with pytest.raises(lf.GrowthError, match=r"model\.safetensors: the file has changed"):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", depth=4, progress=touch)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
