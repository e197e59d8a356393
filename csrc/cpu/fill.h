// Normal numbers on the CPU; what they are is in ../philox.h.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ligo {

// out[0 .. count - 1] = elements 0 .. count - 1 of a stream.
void normals(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t stream, const Team& team);

}  // namespace ligo
