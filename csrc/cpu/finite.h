// Numbers that are NaN or infinite: those whose exponent has all its bits set.
#pragma once

#include <cstdint>

namespace ligo {

// How many of `count` numbers of `bytes` (2, 4 or 8) each, at any address, have all the bits of `exponent`.
std::int64_t not_finite(const void* first, std::int64_t count, int bytes, std::uint64_t exponent);

}  // namespace ligo
