#include "layout.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace ligo {
namespace {

using Words = std::vector<std::int64_t>;

constexpr std::int64_t NOWHERE = -1;  // the layout of a tensor without an address

// Tensors, None among them, with what lies in the place of each None.
class Given {
   public:
    Given(const py::sequence& tensors, const py::sequence& instead)
        : tensors_(listed(tensors)), instead_(listed(instead)) {
        if (!instead_.empty() && instead_.size() != tensors_.size())
            throw std::invalid_argument("as many tensors instead, or none");
    }
    std::size_t size() const { return PyList_GET_SIZE(tensors_.ptr()); }
    bool is_missing(std::size_t n) const { return PyList_GET_ITEM(tensors_.ptr(), n) == Py_None; }
    PyObject* operator[](std::size_t n) const {
        const bool other = is_missing(n) && !instead_.empty();
        return PyList_GET_ITEM((other ? instead_ : tensors_).ptr(), n);
    }

   private:
    // A list as it is, anything else as a new one.
    static py::list listed(const py::sequence& sequence) {
        return PyList_Check(sequence.ptr()) != 0 ? py::reinterpret_borrow<py::list>(sequence)
                                                 : py::list(sequence);
    }

    py::list tensors_, instead_;
};

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

Reader::Reader(const py::capsule& exchange)
    : exchange_(
          static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"))) {
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

py::list Reader::gradients(const py::list& tensors) {
    static PyObject* const name = PyUnicode_InternFromString("grad");
    py::list found(tensors.size());
    for (std::size_t n = 0; n < tensors.size(); ++n) {
        PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), n);
        PyObject* gradient = tensor == Py_None ? Py_NewRef(Py_None) : PyObject_GetAttr(tensor, name);
        if (gradient == nullptr) throw py::error_already_set();
        PyList_SET_ITEM(found.ptr(), n, gradient);
    }
    return found;
}

// False for what has no address though it is not empty: a wrapper around others, or memory that was freed.
bool Reader::describe(PyObject* object, dlpack::Tensor& t) const {
    if (object == Py_None) return false;
    if (exchange_->describe(object, &t) != 0) {
        PyErr_Clear();
        return false;
    }
    const auto end = t.shape + t.dimensions;
    return t.data != nullptr || std::find(t.shape, end, 0) != end;
}

py::tuple Reader::read(const py::sequence& tensors, const py::sequence& instead) const {
    const Given given(tensors, instead);
    Words addresses, layout;
    for (std::size_t n = 0; n < given.size(); ++n) {
        dlpack::Tensor t;
        if (!describe(given[n], t)) {
            addresses.push_back(0);
            layout.push_back(NOWHERE);
            continue;
        }
        addresses.push_back(given.is_missing(n) ? 0 : address(t));
        layout.insert(layout.end(), {t.dimensions, device(t), type(t)});
        layout.insert(layout.end(), t.shape, t.shape + t.dimensions);
        layout.insert(layout.end(), t.strides, t.strides + t.dimensions);
    }
    return py::make_tuple(bytes(addresses), bytes(layout));
}

bool Reader::look(const py::sequence& tensors, const py::bytes& layout, const py::object& addresses,
                  std::size_t first, const py::sequence& instead) const {
    const Given given(tensors, instead);
    const Numbers numbers(addresses);
    if (first > numbers.size() || given.size() > numbers.size() - first)
        throw std::invalid_argument("more tensors than there is room for addresses");
    auto at = reinterpret_cast<const std::int64_t*>(PyBytes_AS_STRING(layout.ptr()));
    const auto end = at + PyBytes_GET_SIZE(layout.ptr()) / sizeof(std::int64_t);
    for (std::size_t n = 0; n < given.size(); ++n) {
        dlpack::Tensor t;
        if (at == end) return false;
        if (!describe(given[n], t)) {
            numbers.data()[first + n] = 0;
            if (*at++ != NOWHERE) return false;
            continue;
        }
        if (at[0] != t.dimensions || at[1] != device(t) || at[2] != type(t)) return false;
        at += 3;
        for (const auto* sizes : {t.shape, t.strides})
            for (int d = 0; d < t.dimensions; ++d)
                if (*at++ != sizes[d]) return false;
        numbers.data()[first + n] = given.is_missing(n) ? 0 : address(t);
    }
    return at == end;
}

}  // namespace ligo
