#include "layout.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace ligo {
namespace {

using Words = std::vector<std::int64_t>;

constexpr std::int64_t NOWHERE = -1;  // the layout of a tensor without an address

// A list as it is, anything else as a new one.
py::list listed(const py::sequence& sequence) {
    return PyList_Check(sequence.ptr()) != 0 ? py::reinterpret_borrow<py::list>(sequence)
                                             : py::list(sequence);
}

// The memory of an array of int64, which cannot grow while this lives.
class Numbers {
   public:
    explicit Numbers(const py::object& array) {
        if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_WRITABLE) != 0) throw py::error_already_set();
    }
    Numbers(const Numbers&) = delete;
    Numbers& operator=(const Numbers&) = delete;
    ~Numbers() { PyBuffer_Release(&view_); }
    std::size_t size() const { return view_.len / sizeof(std::int64_t); }
    std::int64_t* data() const { return static_cast<std::int64_t*>(view_.buf); }

   private:
    Py_buffer view_{};
};

py::bytes bytes(const Words& words) {
    return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int64_t)};
}

std::int64_t address(const dlpack::Tensor& t) {
    return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(t.data) + t.byte_offset);
}

std::int64_t device(const dlpack::Tensor& t) { return (std::int64_t{t.device} << 32) | t.device_number; }

std::int64_t type(const dlpack::Tensor& t) {
    return (std::int64_t{t.type} << 32) | (std::int64_t{t.bits} << 16) | t.lanes;
}

}  // namespace

// A tensor, or the lack of one.
struct Reader::Seen {
    bool has_address = false;  // or it is empty and needs none
    dlpack::Tensor t{};
    int found = 0;  // bits

    // Nothing for a wrapper around others, say, or where the memory was freed.
    static Seen of(const dlpack::Tensor& t) {
        const auto end = t.shape + t.dimensions;
        return {t.data != nullptr || std::find(t.shape, end, 0) != end, t};
    }

    Seen with(int bit) const { return {has_address, t, bit}; }
};

Reader::Reader(const py::capsule& exchange, const Torch& torch)
    : exchange_(
          static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"))),
      torch_(torch) {
    if (exchange_ == nullptr) throw py::error_already_set();
    while (exchange_ != nullptr && exchange_->major > 1) exchange_ = exchange_->older;
    if (exchange_ == nullptr || exchange_->major != 1 || exchange_->describe == nullptr)
        throw std::runtime_error("no DLPack exchange of version 1");
}

py::list Reader::find(const py::list& owners, const py::list& keys) {
    if (owners.size() != keys.size()) throw std::invalid_argument("as many keys as owners");
    py::list found(owners.size());
    for (std::size_t n = 0; n < owners.size(); ++n) {
        PyObject* owner = PyList_GET_ITEM(owners.ptr(), n);
        PyObject* tensor = PyDict_GetItemWithError(owner, PyList_GET_ITEM(keys.ptr(), n));
        if (tensor == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
        PyList_SET_ITEM(found.ptr(), n, Py_NewRef(tensor == nullptr ? Py_None : tensor));
    }
    return found;
}

bool Reader::holds(const py::list& owners, const py::list& keys, const py::list& values) {
    if (owners.size() != keys.size() || owners.size() != values.size())
        throw std::invalid_argument("as many keys and values as owners");
    for (std::size_t n = 0; n < owners.size(); ++n) {
        PyObject* owner = PyList_GET_ITEM(owners.ptr(), n);
        PyObject* found = PyDict_GetItemWithError(owner, PyList_GET_ITEM(keys.ptr(), n));
        if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
        if (found != PyList_GET_ITEM(values.ptr(), n)) return false;
    }
    return true;
}

Reader::Seen Reader::see(const TorchTensor& tensor) const {
    dlpack::Tensor t;
    try {
        torch_.describe(tensor, &t);
    } catch (...) {  // a sparse tensor, say
        PyErr_Clear();
        return {};
    }
    return Seen::of(t);
}

Reader::Seen Reader::see(PyObject* object) const {
    if (object == Py_None) return {};
    if (const TorchTensor* tensor = torch_.borrow(object)) return see(*tensor);
    dlpack::Tensor t;
    if (exchange_->describe(object, &t) == 0) return Seen::of(t);
    PyErr_Clear();
    return {};
}

// Without a gradient as the tensor lies, but at address 0.
Reader::Seen Reader::see_gradient(PyObject* object) const {
    if (object == Py_None) return {};
    Seen seen;
    if (const TorchTensor* tensor = torch_.borrow(object)) {
        const TorchTensor& gradient = torch_.gradient(tensor->impl);
        if (gradient.impl != torch_.nothing) return see(gradient).with(GIVEN);
        seen = see(*tensor);
    } else {
        const py::object gradient = py::handle(object).attr("grad");
        if (!gradient.is_none()) return see(gradient.ptr()).with(GIVEN);
        seen = see(object);
    }
    seen.t.data = nullptr;
    seen.t.byte_offset = 0;
    return seen.with(MISSING);
}

py::tuple Reader::read(const py::sequence& tensors) const {
    const py::list given = listed(tensors);
    Words addresses, layout;
    for (std::size_t n = 0; n < given.size(); ++n) {
        const auto [has_address, t, _] = see(PyList_GET_ITEM(given.ptr(), n));
        if (!has_address) {
            addresses.push_back(0);
            layout.push_back(NOWHERE);
            continue;
        }
        addresses.push_back(address(t));
        layout.insert(layout.end(), {t.dimensions, device(t), type(t)});
        layout.insert(layout.end(), t.shape, t.shape + t.dimensions);
        layout.insert(layout.end(), t.strides, t.strides + t.dimensions);
    }
    return py::make_tuple(bytes(addresses), bytes(layout));
}

template <class See>
int Reader::compare(const py::sequence& tensors, const py::bytes& layout, const py::object& addresses,
                    std::size_t first, const See& see) const {
    const py::list given = listed(tensors);
    const Numbers numbers(addresses);
    if (first > numbers.size() || given.size() > numbers.size() - first)
        throw std::invalid_argument("more tensors than there is room for addresses");
    auto at = reinterpret_cast<const std::int64_t*>(PyBytes_AS_STRING(layout.ptr()));
    const auto end = at + PyBytes_GET_SIZE(layout.ptr()) / sizeof(std::int64_t);
    int all = FITS;
    std::int64_t changed = 0;
    auto* place = numbers.data() + first;
    const auto put = [&](std::int64_t address) {
        changed |= *place ^ address;
        *place++ = address;
    };
    for (std::size_t n = 0; n < given.size(); ++n) {
        const auto [has_address, t, found] = see(PyList_GET_ITEM(given.ptr(), n));
        if (at == end) return 0;
        all |= found;
        if (!has_address) {
            put(0);
            if (*at++ != NOWHERE) return 0;
            continue;
        }
        if (at[0] != t.dimensions || at[1] != device(t) || at[2] != type(t)) return 0;
        at += 3;
        for (const auto* sizes : {t.shape, t.strides})
            for (int d = 0; d < t.dimensions; ++d)
                if (*at++ != sizes[d]) return 0;
        put(address(t));
    }
    if (at != end) return 0;
    return all | (changed != 0 ? MOVED : 0) | ((changed & 15) != 0 ? TILTED : 0);
}

int Reader::look(const py::sequence& tensors, const py::bytes& layout, const py::object& addresses,
                 std::size_t first) const {
    return compare(tensors, layout, addresses, first, [&](PyObject* object) { return see(object); });
}

int Reader::look_at_gradients(const py::sequence& tensors, const py::bytes& layout,
                              const py::object& addresses, std::size_t first) const {
    return compare(tensors, layout, addresses, first, [&](PyObject* object) { return see_gradient(object); });
}

bool Reader::mark(const py::sequence& tensors, const py::object& marks) const {
    const py::list given = listed(tensors);
    const Numbers numbers(marks);
    if (numbers.size() != 2 * given.size()) throw std::invalid_argument("not two numbers for each tensor");
    bool same = true;
    auto* place = numbers.data();
    for (std::size_t n = 0; n < given.size(); ++n, place += 2) {
        PyObject* object = PyList_GET_ITEM(given.ptr(), n);
        const TorchTensor* tensor = torch_.borrow(object);
        const void* who = tensor != nullptr ? tensor->impl : object;
        std::int64_t written = NOWHERE;
        try {
            written = tensor != nullptr ? torch_.version(*tensor)
                                        : py::handle(object).attr("_version").cast<std::int64_t>();
        } catch (...) {  // a tensor of inference mode, which counts no versions
            PyErr_Clear();
        }
        const auto own = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(who));
        same = same && written != NOWHERE && place[0] == own && place[1] == written;
        place[0] = own;
        place[1] = written;
    }
    return same;
}

void Reader::increment_version(const py::sequence& tensors) const {
    const py::list given = listed(tensors);
    std::size_t n = 0;
    try {
        for (; n < given.size(); ++n) {
            const TorchTensor* tensor = torch_.borrow(PyList_GET_ITEM(given.ptr(), n));
            if (tensor == nullptr) break;
            torch_.bump_version(*tensor);
        }
    } catch (...) {  // a tensor of inference mode, which counts no versions
        PyErr_Clear();
    }
    if (n == given.size()) return;
    const auto all_others = given[py::slice(n, given.size(), 1)];
    py::module_::import("torch.autograd.graph").attr("increment_version")(all_others);
}

}  // namespace ligo
