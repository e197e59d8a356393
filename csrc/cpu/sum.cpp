#include "sum.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "blend.h"
#include "halves.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIGO_X86 1  // as in blend.cpp
#endif

namespace ligo {
namespace {

using namespace selection;
using sums::Lists;
using sums::Sum;

using Work = void (*)(const Sum&, const Tile&, std::vector<float>&);

#ifdef LIGO_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,fma")
namespace avx512 {
#include "sum_lanes.h"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "sum_lanes.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace plain {
#include "sum_lanes.h"
}  // namespace plain

// By the name that `use` of blend.h last chose.
Work chosen() {
#ifdef LIGO_X86
    const std::string name = in_use();
    if (name == "avx512" && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return avx512::work;
    if (name == "avx512" || name == "avx2") return avx2::work;
#endif
    return plain::work;
}

}  // namespace

void sum(const Sum* table, const Tile* tiles, std::int64_t count, const Team& team) {
    const Work work = chosen();
    team.split(count, [&](std::int64_t first, std::int64_t last) {
        std::vector<float> buffer;
        for (std::int64_t t = first; t < last; ++t) work(table[tiles[t].item], tiles[t], buffer);
    });
}

}  // namespace ligo
