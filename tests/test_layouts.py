"""Where tensors are and how they lie, as the compiled reader tells it and as the one in Python does."""

from __future__ import annotations

import datetime
import sys
from array import array

import pytest
import torch
from torch import Tensor, nn

from ligo_fast.native import borrow, cpu, layouts
from ligo_fast.native.layouts import FITS, GIVEN, MISSING, MOVED, TILTED, Reader


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


def is_known() -> bool:
    """Whether this is a torch whose own functions are called."""
    release = torch.__version__.split("+")[0].rpartition(".")[0]
    return sys.platform == "linux" and release in borrow.RELEASES


@pytest.fixture(params=["direct", "exchange", "plain"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reader:
    if request.param == "plain":
        return Reader()
    if request.param == "exchange":
        monkeypatch.setattr(borrow, "RELEASES", ())
    elif not is_known():
        pytest.skip(f"not tried with torch {torch.__version__} on {sys.platform}")
    found: Reader | None = layouts._compiled()
    if found is None:
        pytest.skip("no compiled reader, or no DLPack exchange")
    return found


@pytest.mark.skipif(not is_known(), reason="another torch or platform")
def test_a_known_torch_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(borrow.fields()) == cpu.TABLES["TORCH_FIELDS"]
    monkeypatch.setattr(borrow, "RELEASES", ("2.9",))
    assert borrow.fields() == ()


@pytest.mark.skipif(not is_known(), reason="another torch or platform")
@pytest.mark.parametrize("odd", ["GRADIENT", "BUMP_VERSION", "VERSION", "DESCRIBE", "offset"])
def test_a_torch_that_is_made_otherwise_is_left_alone(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if odd == "offset":
        monkeypatch.setattr(Tensor, "_cdata", 0, raising=False)
    else:
        nowhere = ("torch_cpu", "_ZN2at7nowhereEv")
        monkeypatch.setattr(borrow, odd, (nowhere, ("no_library", "")) if odd == "DESCRIBE" else nowhere)
    assert borrow.fields() == ()


def test_addresses(reader: Reader) -> None:
    tensors = [None, *VARIED.values(), None]
    want = [0, *(t.data_ptr() for t in VARIED.values()), 0]
    assert array("q", reader.read(tensors)[0]).tolist() == want


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


def test_any_sequence_will_do(reader: Reader) -> None:
    every = list(VARIED.values())
    assert reader.read(tuple(every)) == reader.read(every)


def test_to_look_is_to_read_and_compare(reader: Reader) -> None:
    """At tensors that are there, that are missing, and that have no address."""
    every = [*VARIED.values(), BASE.to("meta")]
    for tensors in (every, [None, *every[1:]], [None] * len(every)):
        addresses, layout = reader.read(tensors)
        room = array("q", [7] * (len(every) + 3))
        assert reader.look(tensors, layout, room, 1)
        assert room.tolist() == [7, *array("q", addresses), 7, 7]
    assert not reader.look([None, *every[1:]], reader.read(every)[1], room, 0)


def test_every_difference_is_seen(reader: Reader) -> None:
    room = array("q", [0, 0])
    for name, t in VARIED.items():
        for other, u in VARIED.items():
            same = (t.shape, t.stride(), t.dtype) == (u.shape, u.stride(), u.dtype)
            for given, known in ([t], [u]), ([BASE, t], [BASE, u]), ([t, BASE], [u, BASE]):
                assert bool(reader.look(given, reader.read(known)[1], room, 0)) == same, (name, other)
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


def leaves() -> list[nn.Parameter]:
    """Of all layouts; every other one has a gradient."""
    found = [nn.Parameter(t.detach().clone()) for t in VARIED.values() if t.is_floating_point()]
    for p in found[::2]:
        p.grad = torch.empty_like(p)
    return found


def test_to_look_at_gradients_is_to_look_at_each(reader: Reader) -> None:
    """One that is missing lies like its tensor, at 0."""
    tensors = leaves()
    layout = reader.read(tensors)[1]
    room = array("q", [7] * (len(tensors) + 2))
    assert reader.look_at_gradients(tensors, layout, room, 1)
    assert room.tolist() == [7, *(0 if p.grad is None else p.grad.data_ptr() for p in tensors), 7]
    assert not reader.look_at_gradients([None, *tensors[1:]], layout, room, 0)
    assert reader.look_at_gradients([None], reader.read([None])[1], room, 0) and not room[0]


def test_what_is_new_is_told(reader: Reader) -> None:
    """Against what was in the array: addresses, and how far they lie beyond multiples of 16."""
    base, other = torch.zeros(12), torch.zeros(12)
    tensors, moved, tilted = [BASE, base[:4]], [BASE, base[4:8]], [BASE, base[1:5]]
    layout, room = reader.read(tensors)[1], array("q", [0, 0, 7])
    assert base.data_ptr() % 16 == 0  # as torch allocates
    assert reader.look(tensors, layout, room, 0) == FITS | MOVED
    assert reader.look(tensors, layout, room, 0) == FITS
    assert reader.look(moved, layout, room, 0) == FITS | MOVED
    assert reader.look(tilted, layout, room, 0) == FITS | MOVED | TILTED
    assert reader.look(tilted, layout, room, 0) == FITS
    assert reader.look([BASE, other], layout, room, 0) == 0
    assert reader.look([None], reader.read([None])[1], room, 2) == FITS | MOVED | TILTED


def test_which_gradients_there_are_is_told(reader: Reader) -> None:
    p, q, room = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4)), array("q", [0] * 3)
    layout = reader.read([p, q, None])[1]
    assert reader.look_at_gradients([p, q, None], layout, room, 0) == FITS | MISSING
    p.grad = torch.zeros(4)
    assert reader.look_at_gradients([p, q, None], layout, room, 0) == FITS | MOVED | GIVEN | MISSING
    q.grad = torch.zeros(4)
    assert reader.look_at_gradients([p, q, None], layout, room, 0) == FITS | MOVED | GIVEN
    assert reader.look_at_gradients([p, q, None], layout, room, 0) == FITS | GIVEN
    assert reader.look_at_gradients([None], reader.read([None])[1], room, 2) == FITS


def test_a_gradient_that_lies_otherwise_is_seen(reader: Reader) -> None:
    p, room = nn.Parameter(torch.zeros(4, 4)), array("q", [0])
    layout = reader.read([p])[1]
    freed = torch.zeros(4, 4)
    freed.untyped_storage().resize_(0)
    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (4, 4))
    for odd in (
        torch.zeros(4, 4).t(),
        torch.zeros(4, 8)[:, ::2],
        freed,
        torch.zeros(4, 4).to_sparse(),
        wrapper,
    ):
        p.grad = odd
        assert not reader.look_at_gradients([p], layout, room, 0)
    p.grad = torch.zeros(4, 4)
    assert reader.look_at_gradients([p], layout, room, 0)
    p.data = p.data[:, :2]
    assert p.grad is not None and reader.look_at_gradients([p], layout, room, 0)  # `look` sees p itself
    p.grad = None
    assert not reader.look_at_gradients([p], layout, room, 0)


def test_gradients_that_backward_made(reader: Reader) -> None:
    """No Python object for them yet."""
    p, room = nn.Parameter(torch.ones(3)), array("q", [0])
    (p * p).sum().backward()
    assert reader.look_at_gradients([p], reader.read([p])[1], room, 0)
    assert p.grad is not None and room[0] == p.grad.data_ptr() and p.grad.tolist() == [2.0] * 3


def test_a_tensor_that_was_swapped_is_seen(reader: Reader) -> None:
    """The same object in Python is another tensor in C++."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    room, layout, before = array("q", [0]), reader.read([p])[1], q.data_ptr()
    q.grad = torch.zeros(2)
    torch.utils.swap_tensors(p, q)
    assert reader.look([p], layout, room, 0) and room[0] == before
    assert p.grad is not None and reader.look_at_gradients([p], layout, room, 0)
    assert room[0] == p.grad.data_ptr()


def test_writes_are_counted(reader: Reader) -> None:
    with torch.inference_mode():
        uncounted = torch.zeros(2)
    p, base = nn.Parameter(torch.zeros(2)), torch.zeros(4)
    view, wrapper = base[:2], torch.Tensor._make_wrapper_subclass(Wrapper, (4, 4))
    tensors = [p, uncounted, view, wrapper, p]
    before = [t._version for t in (p, base, wrapper)]
    reader.increment_version(tensors)
    reader.increment_version(tuple(tensors[2:4]))
    assert [t._version for t in (p, base, wrapper)] == [n + 2 for n in before]
    with pytest.raises((RuntimeError, TypeError)):
        reader.increment_version([p, "no tensor"])


def test_writes_since_the_last_look_are_seen(reader: Reader) -> None:
    p, base = nn.Parameter(torch.zeros(2)), torch.zeros(4)
    tensors, marks = [p, base[:2], base], array("q", bytes(16 * 3))
    assert not reader.mark(tensors, marks)
    assert reader.mark(tensors, marks) and reader.mark(tuple(tensors), marks)
    with torch.no_grad():
        p.add_(1)
    assert not reader.mark(tensors, marks) and reader.mark(tensors, marks)
    base.add_(1)  # and with it the view
    assert not reader.mark(tensors[:2], marks[:4]) and not reader.mark(tensors, marks)
    assert reader.mark(tensors, marks)
    assert not reader.mark([p, base[:2], base], marks), "another tensor, though of the same memory"
    assert not reader.mark([tensors[1], p, base], marks)
    assert reader.mark([], array("q"))
    with pytest.raises(ValueError):
        reader.mark(tensors, array("q", [0] * 5))


def test_what_counts_no_writes_has_changed(reader: Reader) -> None:
    with torch.inference_mode():
        uncounted = torch.zeros(2)
    marks = array("q", bytes(32))
    for _ in range(2):
        assert not reader.mark([torch.zeros(2), uncounted], marks)


def test_nothing_is_kept(reader: Reader) -> None:
    tensors = leaves()
    layout, room = reader.read(tensors)[1], array("q", [0] * len(tensors))
    owners, keys = [{"key": p} for p in tensors], ["key"] * len(tensors)

    def count() -> list[int]:
        counts = []
        for p in tensors:
            counts += [sys.getrefcount(p), p._use_count()]
            counts += [] if p.grad is None else [sys.getrefcount(p.grad), p.grad._use_count()]
        return counts

    before = count()
    for _ in range(3):
        reader.find(owners, keys)
        reader.read(tensors)
        reader.look(tensors, layout, room, 0)
        reader.look_at_gradients(tensors, layout, room, 0)
        reader.mark(tensors, array("q", bytes(16 * len(tensors))))
        reader.increment_version(tensors)
    assert count() == before
