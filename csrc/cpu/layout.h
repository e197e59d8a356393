// Where tensors lie and how, hundreds of them in one call.
#pragma once

#include <pybind11/pybind11.h>

#include "../dlpack.h"

namespace ligo {

class Layouts {
   public:
    // Of the capsule that holds a dlpack::Exchange. Throws std::runtime_error for one of another version.
    explicit Layouts(const pybind11::capsule& exchange);

    // Of tensors, None among them: their addresses, int64 one after the other, and bytes that are the same
    // when devices, dtypes, shapes and strides are. For None that is 0 and how the tensor in its place in
    // `instead` lies, which has as many or none. Tensors without an address lie like nothing that has one.
    pybind11::tuple operator()(const pybind11::sequence& tensors, const pybind11::sequence& instead) const;

   private:
    const dlpack::Exchange* exchange_;
};

}  // namespace ligo
