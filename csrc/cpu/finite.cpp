#include "finite.h"

#include <algorithm>
#include <cstring>

#include "instructions.h"

namespace ligo {
namespace {

using Count = std::int64_t (*)(const char*, std::int64_t, int, std::uint64_t);
#define LOOPS "finite_lanes.h"
#include "each_set.h"

}  // namespace

std::int64_t not_finite(const void* first, std::int64_t count, int bytes, std::uint64_t exponent) {
    return chosen()(static_cast<const char*>(first), count, bytes, exponent);
}

}  // namespace ligo
