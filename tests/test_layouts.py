"""Addresses and layouts as the compiled reader tells them, as plain torch does, and what makes two differ."""

from __future__ import annotations

import datetime

import pytest
import torch
from torch import Tensor, nn

from ligo_fast import layouts


class Wrapper(Tensor):
    """A tensor that stands for others, as a DTensor does."""

    @classmethod
    def __torch_dispatch__(cls, *arguments: object) -> None:  # type: ignore[override]
        pytest.fail("computed with")


compiled = pytest.mark.skipif(layouts._reader is None, reason="no compiled reader, or no DLPack exchange")
BASE = torch.zeros(6, 6)
VARIED: dict[str, Tensor] = {
    "whole": BASE,
    "part": BASE[1:, :6],
    "turned": BASE.t(),
    "flat": BASE.view(-1),
    "unaligned": BASE.view(-1)[1:],
    "expanded": BASE[:1].expand(6, 6),
    "parameter": nn.Parameter(torch.zeros(6, 5)),
    "number": torch.zeros(()),
    "empty": torch.zeros(0, 3),
    "half": torch.zeros(6, 6).half(),
    "bfloat16": torch.zeros(6, 6).bfloat16(),
    "int16": torch.zeros(6, 6, dtype=torch.int16),
    "double": torch.zeros(6, 6).double(),
}


@pytest.fixture(params=["compiled", "plain"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(layouts, "_reader", None)
    elif layouts._reader is None:
        pytest.skip("no compiled reader, or no DLPack exchange")


def test_addresses(reader: None) -> None:
    tensors = [None, *VARIED.values(), None]
    want = [0, *(t.data_ptr() for t in VARIED.values()), 0]
    assert layouts.read(tensors)[0].tolist() == want
    assert layouts.read(tensors, [BASE] * len(tensors))[0].tolist() == want


def test_layouts_are_equal_where_device_dtype_shape_and_stride_are(reader: None) -> None:
    for name, t in VARIED.items():
        for other, u in VARIED.items():
            same = (t.shape, t.stride(), t.dtype) == (u.shape, u.stride(), u.dtype)
            assert (layouts.read([t])[1] == layouts.read([u])[1]) == same, (name, other)
            assert (layouts.read([BASE, t])[1] == layouts.read([BASE, u])[1]) == same, (name, other)


def test_what_has_no_address_is_unlike_what_has(reader: None) -> None:
    freed = torch.zeros(6, 6)
    freed.untyped_storage().resize_(0)
    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (6, 6), device=BASE.device)
    for t in (freed, wrapper, BASE.to("meta"), BASE.to_sparse()):
        address, layout = layouts.read([t])
        assert address.tolist() == [0] and layout != layouts.read([BASE])[1]


def test_what_is_missing_lies_like_its_stand_in(reader: None) -> None:
    every = list(VARIED.values())
    want = layouts.read(every)[1]
    assert layouts.read([None] * len(every), every)[1] == want
    assert layouts.read([None, *every[1:]], every)[1] == want
    assert layouts.read([None, *every[1:]])[1] != want


def test_a_change_in_place_is_seen(reader: None) -> None:
    t = torch.zeros(4, 4)
    before = layouts.read([t])
    for change in (torch.t, lambda u: u[:2], lambda u: u.view(2, 8)):
        again = t.clone()
        address = again.data_ptr()
        again.data = change(again.data)
        assert again.data_ptr() == address and layouts.read([again])[1] != before[1]


@pytest.mark.parametrize("exchange", ["no capsule", datetime.datetime_CAPI])
def test_another_exchange_is_left_alone(exchange: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__dlpack_c_exchange_api__", exchange, raising=False)
    assert layouts._compiled() is None


@compiled
def test_the_number_of_stand_ins_must_fit() -> None:
    with pytest.raises(ValueError, match="as many tensors"):
        layouts.read([BASE, None], [BASE])


def test_any_sequence_will_do(reader: None) -> None:
    every = list(VARIED.values())
    assert layouts.read(tuple(every), tuple(every)) == layouts.read(every)
