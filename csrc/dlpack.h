// The part of the DLPack standard (dmlc.github.io/dlpack) that tells where and how the tensors of another
// library lie: the ABI of major version 1, the same for every release of that library.
#pragma once

#include <cstdint>

namespace ligo::dlpack {

struct Tensor {
    void* data;
    std::int32_t device, device_number;
    std::int32_t dimensions;
    std::uint8_t type, bits;
    std::uint16_t lanes;
    const std::int64_t *shape, *strides;  // of the tensor itself, in elements
    std::uint64_t byte_offset;
};

// What the capsule `type(tensor).__dlpack_c_exchange_api__` holds.
struct Exchange {
    std::uint32_t major, minor;
    const Exchange* older;
    void (*allocate)(), (*give)(), (*take)();    // not used here
    int (*describe)(void* object, Tensor* out);  // borrowed; 0, or -1 and a Python error; may be null
    int (*stream)(std::int32_t device, std::int32_t number, void** out);
};

}  // namespace ligo::dlpack
