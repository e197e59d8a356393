// Normal numbers on a GPU; what they are is in ../philox.h. No CUDA header here.
#pragma once

#include <cstdint>

namespace ligo::cuda {

// out[0 .. count - 1] = elements 0 .. count - 1 of a stream. CUDA's error code.
int normals(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t numbers, int device,
            void* stream);

}  // namespace ligo::cuda
