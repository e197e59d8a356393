#include "select.h"

#include <algorithm>
#include <type_traits>

#include "blend.h"
#include "halves.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIGO_X86 1  // as in blend.cpp
#include <immintrin.h>
#endif

namespace ligo {
namespace {

using namespace selection;

constexpr std::int64_t LINE_BYTES = 64;    // a cache line
constexpr std::int64_t BUFFER_LINES = 64;  // 4 KB: stays in the first-level cache
constexpr std::int64_t COLLECTED = 256;    // scattered columns at a time

// Of each instruction set below: stream_lines stores whole cache lines past the cache; gather is
// to[k] = in[index[k]], zero for a negative index, and returns how many it did.
using Work = void (*)(const Item&, const Tile&, bool);

#ifdef LIGO_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl")
namespace avx512 {
static inline void stream_lines(void* to, const void* from, std::int64_t lines) {
    for (std::int64_t i = 0; i < lines; ++i)
        _mm512_stream_si512(static_cast<__m512i*>(to) + i,
                            _mm512_loadu_si512(static_cast<const __m512i*>(from) + i));
}
static inline std::int64_t gather(float* to, const float* in, const std::int32_t* index, std::int64_t n) {
    for (std::int64_t k = 0; k < n; k += 16) {
        const __mmask16 some = __mmask16((1u << std::min<std::int64_t>(16, n - k)) - 1);
        const __m512i at = _mm512_maskz_loadu_epi32(some, index + k);
        const __mmask16 given = _mm512_mask_cmpge_epi32_mask(some, at, _mm512_setzero_si512());
        _mm512_mask_storeu_ps(to + k, some, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), given, at, in, 4));
    }
    return n;
}
#include "select_lanes.h"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
static inline void stream_lines(void* to, const void* from, std::int64_t lines) {
    for (std::int64_t i = 0; i < 2 * lines; ++i)
        _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                            _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
}
static inline std::int64_t gather(float* to, const float* in, const std::int32_t* index, std::int64_t n) {
    std::int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + k));
        const __m256 given = _mm256_castsi256_ps(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(-1)));
        _mm256_storeu_ps(to + k, _mm256_mask_i32gather_ps(_mm256_setzero_ps(), in, at, given, 4));
    }
    return k;
}
#include "select_lanes.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace plain {
static inline void stream_lines(void* to, const void* from, std::int64_t lines) {
    std::memcpy(to, from, lines * LINE_BYTES);
}
static inline std::int64_t gather(float*, const float*, const std::int32_t*, std::int64_t) { return 0; }
#include "select_lanes.h"
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

void select(const Item* items, const Tile* tiles, std::int64_t count, bool stream, const Team& team) {
    const Work work = chosen();
    team.split(count, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) work(items[tiles[t].item], tiles[t], stream);
#ifdef LIGO_X86
        _mm_sfence();  // streamed stores are ordered with later ones
#endif
    });
}

}  // namespace ligo
