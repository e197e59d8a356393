#include "layout.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace ligo {
namespace {

using Words = std::vector<std::int64_t>;

// A list as it is, anything else as a new one.
py::list listed(const py::sequence& sequence) {
    return PyList_Check(sequence.ptr()) != 0 ? py::reinterpret_borrow<py::list>(sequence)
                                             : py::list(sequence);
}

py::bytes bytes(const Words& words) {
    return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int64_t)};
}

// Whether a tensor that is not empty has no address: a wrapper around others, or memory that was freed.
bool is_nowhere(const dlpack::Tensor& t) {
    const auto end = t.shape + t.dimensions;
    return t.data == nullptr && std::find(t.shape, end, 0) == end;
}

}  // namespace

Layouts::Layouts(const py::capsule& exchange)
    : exchange_(
          static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"))) {
    if (exchange_ == nullptr) throw py::error_already_set();
    while (exchange_ != nullptr && exchange_->major > 1) exchange_ = exchange_->older;
    if (exchange_ == nullptr || exchange_->major != 1 || exchange_->describe == nullptr)
        throw std::runtime_error("no DLPack exchange of version 1");
}

py::tuple Layouts::operator()(const py::sequence& tensors, const py::sequence& instead) const {
    const py::list given = listed(tensors), others = listed(instead);
    if (!others.empty() && others.size() != given.size())
        throw std::invalid_argument("as many tensors instead, or none");
    Words addresses, layout;
    addresses.reserve(given.size());
    layout.reserve(given.size() * 8);
    for (std::size_t n = 0; n < given.size(); ++n) {
        PyObject* object = PyList_GET_ITEM(given.ptr(), n);
        const bool missing = object == Py_None;
        if (missing && !others.empty()) object = PyList_GET_ITEM(others.ptr(), n);
        dlpack::Tensor t{};
        if (object == Py_None || exchange_->describe(object, &t) != 0 || is_nowhere(t)) {
            PyErr_Clear();  // of describe
            addresses.push_back(0);
            layout.push_back(-1);
            continue;
        }
        const auto address = reinterpret_cast<std::intptr_t>(t.data) + t.byte_offset;
        addresses.push_back(missing ? 0 : static_cast<std::int64_t>(address));
        layout.push_back(t.dimensions);
        layout.push_back((std::int64_t{t.device} << 32) | t.device_number);
        layout.push_back((std::int64_t{t.type} << 32) | (std::int64_t{t.bits} << 16) | t.lanes);
        for (int d = 0; d < t.dimensions; ++d) {
            layout.push_back(t.shape[d]);
            layout.push_back(t.strides[d]);
        }
    }
    return py::make_tuple(bytes(addresses), bytes(layout));
}

}  // namespace ligo
