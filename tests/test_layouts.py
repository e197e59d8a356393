"""Where tensors are and how they lie, as the compiled reader tells it and as the one in Python does."""

from __future__ import annotations

import datetime
import sys
from array import array

import pytest
import torch
from torch import Tensor, nn

from ligo_fast import layouts
from ligo_fast.layouts import Reader


class Wrapper(Tensor):
    """A tensor that stands for others, as a DTensor does."""

    @classmethod
    def __torch_dispatch__(cls, *arguments: object) -> None:  # type: ignore[override]
        pytest.fail("computed with")


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
def reader(request: pytest.FixtureRequest) -> Reader:
    found: Reader | None = Reader() if request.param == "plain" else layouts._compiled()
    if found is None:
        pytest.skip("no compiled reader, or no DLPack exchange")
    return found


def test_addresses(reader: Reader) -> None:
    tensors = [None, *VARIED.values(), None]
    want = [0, *(t.data_ptr() for t in VARIED.values()), 0]
    assert array("q", reader.read(tensors)[0]).tolist() == want
    assert array("q", reader.read(tensors, [BASE] * len(tensors))[0]).tolist() == want


def test_layouts_are_equal_where_device_dtype_shape_and_stride_are(reader: Reader) -> None:
    for name, t in VARIED.items():
        for other, u in VARIED.items():
            same = (t.shape, t.stride(), t.dtype) == (u.shape, u.stride(), u.dtype)
            assert (reader.read([t])[1] == reader.read([u])[1]) == same, (name, other)
            assert (reader.read([BASE, t])[1] == reader.read([BASE, u])[1]) == same, (name, other)


def test_what_has_no_address_is_unlike_what_has(reader: Reader) -> None:
    freed = torch.zeros(6, 6)
    freed.untyped_storage().resize_(0)
    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (6, 6), device=BASE.device)
    for t in (freed, wrapper, BASE.to("meta"), BASE.to_sparse()):
        address, layout = reader.read([t])
        assert array("q", address).tolist() == [0] and layout != reader.read([BASE])[1]


def test_what_is_missing_lies_like_its_stand_in(reader: Reader) -> None:
    every = list(VARIED.values())
    want = reader.read(every)[1]
    assert reader.read([None] * len(every), every)[1] == want
    assert reader.read([None, *every[1:]], every)[1] == want
    assert reader.read([None, *every[1:]])[1] != want


def test_a_change_in_place_is_seen(reader: Reader) -> None:
    t = torch.zeros(4, 4)
    before = reader.read([t])
    for change in (torch.t, lambda u: u[:2], lambda u: u.view(2, 8)):
        again = t.clone()
        address = again.data_ptr()
        again.data = change(again.data)
        assert again.data_ptr() == address and reader.read([again])[1] != before[1]


@pytest.mark.parametrize("exchange", ["no capsule", datetime.datetime_CAPI])
def test_another_exchange_is_left_alone(exchange: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__dlpack_c_exchange_api__", exchange, raising=False)
    assert layouts._compiled() is None


def test_the_number_of_stand_ins_must_fit(reader: Reader) -> None:
    with pytest.raises(ValueError):
        reader.read([BASE, None], [BASE])


def test_any_sequence_will_do(reader: Reader) -> None:
    every = list(VARIED.values())
    assert reader.read(tuple(every), tuple(every)) == reader.read(every)


def test_to_look_is_to_read_and_compare(reader: Reader) -> None:
    """At tensors that are there, that are missing, and that have no address."""
    every = [*VARIED.values(), BASE.to("meta")]
    for tensors in (every, [None, *every[1:]], [None] * len(every)):
        addresses, layout = reader.read(tensors, every)
        room = array("q", [7] * (len(every) + 3))
        assert reader.look(tensors, layout, room, 1, every)
        assert room.tolist() == [7, *array("q", addresses), 7, 7]
    assert not reader.look([None, *every[1:]], reader.read(every)[1], room, 0)


def test_every_difference_is_seen(reader: Reader) -> None:
    room = array("q", [0, 0])
    for name, t in VARIED.items():
        for other, u in VARIED.items():
            same = (t.shape, t.stride(), t.dtype) == (u.shape, u.stride(), u.dtype)
            for given, known in ([t], [u]), ([BASE, t], [BASE, u]), ([t, BASE], [u, BASE]):
                assert reader.look(given, reader.read(known)[1], room, 0) == same, (name, other)
    layout = reader.read([BASE])[1]
    for other_number in ([], [BASE, BASE]):
        assert not reader.look(other_number, layout, room, 0)


@pytest.mark.parametrize(("count", "first"), [(2, 2), (4, 0), (1, 3), (0, 4), (1, sys.maxsize)])
def test_addresses_stay_in_their_array(count: int, first: int, reader: Reader) -> None:
    room, tensors = array("q", [7] * 3), [BASE] * count
    with pytest.raises(ValueError):
        reader.look(tensors, reader.read(tensors)[1], room, first)
    assert room.tolist() == [7] * 3


def test_what_is_there_now(reader: Reader) -> None:
    modules, other = [nn.Linear(2, 3) for _ in range(3)], nn.Parameter(torch.zeros(1))
    owners = [m._parameters for m in modules for _ in range(2)]
    keys = [
        "".join(parts) for _ in modules for parts in (("wei", "ght"), ("b", "ias"))
    ]  # equal, not the same
    want = [p for m in modules for p in m.parameters()]
    assert all(a is b for a, b in zip(reader.find(owners, keys), want, strict=True))
    del modules[1].weight
    modules[2].bias = other
    want[2], want[5] = None, other
    assert all(a is b for a, b in zip(reader.find(owners, keys), want, strict=True))
    assert reader.find([], []) == []


def test_gradients(reader: Reader) -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    q.grad = torch.ones(3)
    found = reader.gradients([p, None, q, BASE])
    assert found[2] is q.grad and [found[n] for n in (0, 1, 3)] == [None] * 3
    counts = []
    for _ in range(3):
        counts.append(sys.getrefcount(q.grad))
        reader.gradients([p, None, q])
        reader.find([{"grad": q.grad}], ["grad"])
    assert len(set(counts)) == 1
    with pytest.raises(AttributeError):
        reader.gradients([1])
