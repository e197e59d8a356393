#include "fill.h"

#include <algorithm>

// No product is fused with a sum: the bits are the same on every machine.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "../philox.h"

namespace ligo {

void normals(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t stream, const Team& team) {
    constexpr std::int64_t MANY = 1 << 12;  // blocks of four that are worth a thread's while
    const std::int64_t blocks = (count + 3) / 4;
    team.split((blocks + MANY - 1) / MANY, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t at = first * MANY; at < std::min(last * MANY, blocks); ++at) {
            const philox::Block block = philox::block(std::uint64_t(at), stream, seed);
            const std::int64_t some = std::min<std::int64_t>(4, count - 4 * at);
            for (std::int64_t i = 0; i < some; ++i) out[4 * at + i] = philox::normal(block.word[i]);
        }
    });
}

}  // namespace ligo
