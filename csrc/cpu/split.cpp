#include "split.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "halves.h"
#include "instructions.h"

#if defined(LIGO_X86) && defined(__linux__) && __GNUC__ >= 11
#define LIGO_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ligo {
namespace {

constexpr std::int64_t SIDE = 16;            // rows of a tile
constexpr std::int64_t DEPTH = 32;           // bfloat16 values in a tile's row
constexpr std::int64_t TILE = SIDE * DEPTH;  // values
constexpr std::int64_t PAIR = 2 * SIDE;      // panels are worked on in pairs: 32 x 32 values of out
constexpr std::int64_t BLOCK = 256;          // rows or columns of X packed at a time, half as many of float32
constexpr std::int64_t GROUP = 256;  // rows of the factor whose sums are kept while the depth is gone through
constexpr std::int64_t CHUNK = 32;   // tiles of the depth at a time: all three then fit a core's own cache

std::int64_t tiles(std::int64_t depth) { return (depth + DEPTH - 1) / DEPTH; }
std::int64_t pairs(std::int64_t n) { return (n + PAIR - 1) / PAIR; }
// Values of the packed form of n rows or columns.
std::int64_t packed_values(std::int64_t n, std::int64_t depth, int parts) {
    return pairs(n) * 2 * tiles(depth) * TILE * parts;
}

}  // namespace

std::int64_t packed_bytes(std::int64_t rows, std::int64_t columns) {
    return 2 * packed_values(rows, columns, 2);
}

#ifndef LIGO_AMX

bool has_matrix_units() { return false; }
void pack_left(std::uint8_t*, const Matrix&, const Team&) {}
void pack_right(std::uint8_t*, const Matrix&, const Team&) {}
void left_product(const Matrix&, const std::uint8_t*, const Matrix&, const Team&) {}
void right_product(const Matrix&, const Matrix&, const float*, std::int64_t, const float*,
                   const std::uint8_t*, const Team&) {}

#else

bool has_matrix_units() {
    static const bool found = [] {
        unsigned a, b, c, d;
        constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
        constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILES) &&
               instructions().front() == "avx512" &&
               syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    }();
    return found;
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,fma,amx-tile,amx-bf16")
namespace {

#include "split_tiles.h"

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
std::unique_ptr<T, Free> buffer(std::int64_t values) {
    void* const found = std::aligned_alloc(64, std::size_t(values) * sizeof(T));
    if (!found) std::abort();  // within a team's work no exception may leave
    return std::unique_ptr<T, Free>(static_cast<T*>(found));
}

template <class S>
const S* at(const Matrix& m, std::int64_t row, std::int64_t column = 0) {
    return reinterpret_cast<const S*>(m.address) + row * m.stride + column;
}
template <class D>
D* to(const Matrix& m, std::int64_t row, std::int64_t column = 0) {
    return reinterpret_cast<D*>(m.address) + row * m.stride + column;
}

// The products of X, a block after the other, with the factor of `n` rows. LEFT: the factor is the left
// operand and X the right one, a block of which is some columns, not rows. begin(start, width) is called for
// each block, write(x, f, sums) for its 32 x 32 sums at x in X and at f in the factor.
template <class S, bool LEFT, class Begin, class Write>
void product(const Matrix& x, const Half* factor, std::int64_t n, const Team& team, const Begin& begin,
             const Write& write) {
    constexpr int parts = parts_of<S>;
    const std::int64_t depth = LEFT ? x.rows : x.columns, size = LEFT ? x.columns : x.rows;
    if (!size) return;
    const std::int64_t share = (size + team.threads - 1) / team.threads, limit = BLOCK / parts;
    const std::int64_t blocks = (share + limit - 1) / limit;  // of a thread
    const std::int64_t step = pairs((share + blocks - 1) / blocks) * PAIR, count = tiles(depth);
    const std::int64_t panel = count * PAIR * DEPTH;  // values of a pair of panels, of each part
    team.split((size + step - 1) / step, [&](std::int64_t first, std::int64_t last) {
        const Tiles use;
        const auto packed = buffer<Half>(packed_values(step, depth, parts));
        const auto sums = buffer<float>(step * GROUP);
        for (std::int64_t b = first; b < last; ++b) {
            const std::int64_t start = b * step, width = std::min(step, size - start), wide = pairs(width);
            begin(start, width);
            if (!n) continue;
            if (LEFT)
                pack_columns(packed.get(), at<S>(x, 0, start), x.stride, width, depth);
            else
                pack_rows(packed.get(), at<S>(x, start), x.stride, width, depth);
            for (std::int64_t g = 0; g < n; g += GROUP) {
                const std::int64_t high = pairs(std::min(GROUP, n - g));
                const Half* const fixed = factor + g / PAIR * panel * 2;
                for (std::int64_t t = 0; t == 0 || t < count; t += CHUNK)
                    for (std::int64_t f = 0; f < high; ++f)
                        for (std::int64_t i = 0; i < wide; ++i) {
                            float* const into = sums.get() + (f * wide + i) * PAIR * PAIR;
                            const Half* const c = fixed + f * panel * 2;
                            const Half* const some = packed.get() + i * panel * parts;
                            const std::int64_t stop = std::min(t + CHUNK, count);
                            if (LEFT)
                                add_product<2, parts>(into, c, some, count, t, stop);
                            else
                                add_product<parts, 2>(into, some, c, count, t, stop);
                        }
                for (std::int64_t f = 0; f < high; ++f)
                    for (std::int64_t i = 0; i < wide; ++i)
                        write(start + i * PAIR, g + f * PAIR, sums.get() + (f * wide + i) * PAIR * PAIR);
            }
        }
    });
}

// out[n] = x[n] * scale[n] * factor
template <class S, class D>
void scaled(D* out, const S* x, const float* scale, float factor, std::int64_t n) {
    if (scale)
        for (std::int64_t k = 0; k < n; ++k) narrow(widen(x[k]) * scale[k] * factor, out[k]);
    else if (factor != 1.0f)
        for (std::int64_t k = 0; k < n; ++k) narrow(widen(x[k]) * factor, out[k]);
    else if (std::is_same_v<S, D>)
        std::memcpy(static_cast<void*>(out), x, n * sizeof(D));
    else
        for (std::int64_t k = 0; k < n; ++k) narrow(widen(x[k]), out[k]);
}

template <class S>
void left(const Matrix& out, const Half* factor, const Matrix& x, const Team& team) {
    const auto write = [&](std::int64_t column, std::int64_t row, const float* sums) {
        const std::int64_t high = std::min(PAIR, out.rows - row), wide = std::min(PAIR, out.columns - column);
        for (std::int64_t r = 0; r < high; ++r)
            std::memcpy(to<float>(out, row + r, column), sums + r * PAIR, 4 * wide);
    };
    product<S, true>(x, factor, out.rows, team, [](std::int64_t, std::int64_t) {}, write);
}

template <class S, class D>
void right(const Matrix& out, const Matrix& x, const float* rows, std::int64_t kept, const float* columns,
           const Half* factor, const Team& team) {
    const std::int64_t fresh = out.columns - kept;
    const auto by = [=](std::int64_t r) { return rows ? rows[r] : 1.0f; };
    const auto keep = [&](std::int64_t start, std::int64_t height) {
        for (std::int64_t r = start; kept && r < start + height; ++r)
            scaled(to<D>(out, r), at<S>(x, r), columns, by(r), kept);
    };
    const auto write = [&](std::int64_t row, std::int64_t column, const float* sums) {
        const std::int64_t high = std::min(PAIR, out.rows - row), wide = std::min(PAIR, fresh - column);
        const float* const none = nullptr;
        for (std::int64_t r = 0; r < high; ++r)
            scaled(to<D>(out, row + r, kept + column), sums + r * PAIR, none, by(row + r), wide);
    };
    product<S, false>(x, factor, fresh, team, keep, write);
}

}  // namespace

void pack_left(std::uint8_t* packed, const Matrix& factor, const Team& team) {
    team.split(pairs(factor.rows), [&](std::int64_t first, std::int64_t last) {
        const std::int64_t start = first * PAIR, stop = std::min(last * PAIR, factor.rows);
        pack_rows(reinterpret_cast<Half*>(packed) + packed_values(start, factor.columns, 2),
                  at<float>(factor, start), factor.stride, stop - start, factor.columns);
    });
}

void pack_right(std::uint8_t* packed, const Matrix& factor, const Team& team) {
    // the transposed of what pack_left makes, pair by pair within each tile
    pack_left(packed, factor, team);
    Half* const values = reinterpret_cast<Half*>(packed);
    team.split(packed_values(factor.rows, factor.columns, 2) / TILE,
               [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t t = first; t < last; ++t) {
                       alignas(64) std::uint32_t tile[SIDE][SIDE];
                       std::uint32_t* const out = reinterpret_cast<std::uint32_t*>(values + t * TILE);
                       std::memcpy(tile, out, sizeof tile);
                       for (std::int64_t k = 0; k < SIDE; ++k)
                           for (std::int64_t n = 0; n < SIDE; ++n) out[k * SIDE + n] = tile[n][k];
                   }
               });
}

void left_product(const Matrix& out, const std::uint8_t* factor, const Matrix& x, const Team& team) {
    const Half* const c = reinterpret_cast<const Half*>(factor);
    x.type == selection::FLOAT32 ? left<float>(out, c, x, team) : left<BFloat16>(out, c, x, team);
}

void right_product(const Matrix& out, const Matrix& x, const float* rows, std::int64_t kept,
                   const float* columns, const std::uint8_t* factor, const Team& team) {
    const Half* const c = reinterpret_cast<const Half*>(factor);
    const bool wide = x.type == selection::FLOAT32, exact = out.type == selection::FLOAT32;
    const auto run = wide    ? exact ? right<float, float> : right<float, BFloat16>
                     : exact ? right<BFloat16, float>
                             : right<BFloat16, BFloat16>;
    run(out, x, rows, kept, columns, c, team);
}
#pragma GCC pop_options

#endif

}  // namespace ligo
