// Where tensors lie and how, hundreds of them in one call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../dlpack.h"

namespace ligo {

class Reader {
   public:
    // Of the capsule that holds a dlpack::Exchange. Throws std::runtime_error for one of another version.
    explicit Reader(const pybind11::capsule& exchange);

    // What each dict of a list has now under the key in its place, None for nothing.
    static pybind11::list find(const pybind11::list& owners, const pybind11::list& keys);

    // The `.grad` of each tensor; None for None.
    static pybind11::list gradients(const pybind11::list& tensors);

    // Of tensors, None among them: their addresses, int64 one after the other, and bytes that are the same
    // when devices, dtypes, shapes and strides are. For None that is 0 and how the tensor in its place in
    // `instead` lies, which has as many or none. Tensors without an address lie like nothing that has one.
    pybind11::tuple read(const pybind11::sequence& tensors, const pybind11::sequence& instead) const;

    // Whether they lie as `layout` says, which `read` gave for others: quicker than to read and to compare.
    // Puts their addresses into an array of int64 from `first` on, up to the first that does not.
    bool look(const pybind11::sequence& tensors, const pybind11::bytes& layout,
              const pybind11::object& addresses, std::size_t first, const pybind11::sequence& instead) const;

   private:
    bool describe(PyObject* object, dlpack::Tensor& out) const;

    const dlpack::Exchange* exchange_;
};

}  // namespace ligo
