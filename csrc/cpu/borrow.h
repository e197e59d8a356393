// Functions of torch, called on a tensor where it lies in its Python object.
//
// Whoever asks through Python or DLPack's exchange has torch make a reference first. For a tensor that only
// Python holds, as it does parameters, that takes the GIL twice: more time than the answer does.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "../dlpack.h"

namespace ligo {

// at::Tensor: the address of a c10::TensorImpl and nothing else.
struct TorchTensor {
    const void* impl;
};

// What ligo_fast/native/borrow.py knows of the torch in this process: nothing of a release it was not tried
// with.
struct Torch {
    PyTypeObject* type = nullptr;                                // of every tensor in Python
    std::size_t offset = 0;                                      // of the at::Tensor in such an object
    const void* nothing = nullptr;                               // the impl of an undefined tensor
    const TorchTensor& (*gradient)(const void* impl) = nullptr;  // c10::TensorImpl::grad
    void (*bump_version)(const TorchTensor&) = nullptr;     // torch::autograd::impl::bump_version; may throw
    std::int64_t (*version)(const TorchTensor&) = nullptr;  // at::TensorBase::_version; may throw
    // at::toDLPackNonOwning, which may throw: before torch 2.14, or since
    void (*describe_before)(const TorchTensor&, dlpack::Tensor*) = nullptr;
    void (*describe_since)(const TorchTensor&, dlpack::Tensor*, bool read_only) = nullptr;

    void describe(const TorchTensor& tensor, dlpack::Tensor* out) const {
        if (describe_since != nullptr)
            describe_since(tensor, out, false);
        else
            describe_before(tensor, out);
    }

    // Null for what is no tensor, or where nothing is known.
    const TorchTensor* borrow(PyObject* object) const {
        if (type == nullptr || PyObject_TypeCheck(object, type) == 0) return nullptr;
        return reinterpret_cast<const TorchTensor*>(reinterpret_cast<const char*>(object) + offset);
    }
};

}  // namespace ligo
