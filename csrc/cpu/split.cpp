#include "split.h"

#include <algorithm>
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

using Half = std::uint16_t;

Half rounded(float x) {
    BFloat16 half;
    narrow(x, half);
    return half.bits;
}

// A row of a source of the length `n` (at most DEPTH), as one or two rows of bfloat16.
void split(Half* const* to, const BFloat16* from, std::int64_t n) { std::memcpy(to[0], from, 2 * n); }
void split(Half* const* to, const float* from, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) {
        to[0][k] = rounded(from[k]);
        to[1][k] = rounded(from[k] - from_bits(std::uint32_t(to[0][k]) << 16));
    }
}

template <class S>
constexpr int parts_of = sizeof(S) == 4 ? 2 : 1;

// Rows of a matrix as panels of a left operand; those past the end are zero.
template <class S>
void pack_rows(Half* to, const S* from, std::int64_t stride, std::int64_t rows, std::int64_t depth) {
    constexpr int parts = parts_of<S>;
    const std::int64_t count = tiles(depth);
    for (std::int64_t r = 0; r < pairs(rows) * PAIR; ++r) {
        Half* const panel = to + r / SIDE * count * parts * TILE + r % SIDE * DEPTH;
        for (std::int64_t t = 0; t < count; ++t) {
            Half* const at = panel + t * parts * TILE;
            Half* const both[] = {at, at + (parts - 1) * TILE};
            const std::int64_t n = r < rows ? std::min(DEPTH, depth - t * DEPTH) : 0;
            if (n == DEPTH) {
                split(both, from + r * stride + t * DEPTH, DEPTH);
                continue;
            }
            for (Half* part : both) std::memset(part, 0, 2 * DEPTH);
            if (n) split(both, from + r * stride + t * DEPTH, n);
        }
    }
}

// Columns of a matrix as panels of a right operand, of which the units want two rows as one of pairs.
template <class S>
void pack_columns(Half* to, const S* from, std::int64_t stride, std::int64_t columns, std::int64_t depth) {
    constexpr int parts = parts_of<S>;
    constexpr std::int64_t AHEAD = 8;  // rows: they are too far apart for the processor to see what comes
    const std::int64_t count = tiles(depth), panel = count * parts * TILE;
    alignas(64) Half first[PAIR], second[PAIR];
    for (int n = 0; n < SIDE; ++n) {
        first[2 * n] = Half(n), first[2 * n + 1] = Half(n + PAIR);
        second[2 * n] = Half(n + SIDE), second[2 * n + 1] = Half(n + SIDE + PAIR);
    }
    const __m512i low = _mm512_load_si512(first), high = _mm512_load_si512(second);
    for (std::int64_t k = 0; k < count * DEPTH; k += 2)
        for (std::int64_t c = 0; c < columns; c += PAIR) {
            alignas(64) Half row[2][parts][PAIR];
            for (std::int64_t odd = 0; odd < 2; ++odd) {
                const S* const source = from + (k + odd) * stride + c;
                Half* const both[] = {row[odd][0], row[odd][parts - 1]};
                if (k + odd < depth && c + PAIR <= columns) {
                    _mm_prefetch(reinterpret_cast<const char*>(source + AHEAD * stride), _MM_HINT_T0);
                    split(both, source, PAIR);
                    continue;
                }
                std::memset(row[odd], 0, sizeof row[odd]);
                if (k + odd < depth) split(both, source, columns - c);
            }
            Half* const at = to + c / SIDE * panel + k / DEPTH * parts * TILE + k % DEPTH * SIDE;
            for (int part = 0; part < parts; ++part) {
                const __m512i even = _mm512_load_si512(row[0][part]), odd = _mm512_load_si512(row[1][part]);
                _mm512_store_si512(at + part * TILE, _mm512_permutex2var_epi16(even, low, odd));
                _mm512_store_si512(at + part * TILE + panel, _mm512_permutex2var_epi16(even, high, odd));
            }
        }
}

// The tiles 0 to 3 sum 32 x 32 values of out, 4 and 5 are the left operand's, 6 and 7 the right one's.
struct alignas(64) Tiles {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};

    Tiles() { _tile_loadconfig(this); }
    ~Tiles() { _tile_release(); }
};

void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// Adds the tiles `first` to `last` of the depth, of `count`, of a product of two pairs of panels to 32 x 32
// sums; those before the first tile are taken to be zero. L and R: parts of the operands.
template <int L, int R>
void add_product(float* sums, const Half* left, const Half* right, std::int64_t count, std::int64_t first,
                 std::int64_t last) {
    const Half *const below = left + count * L * TILE, *const beside = right + count * R * TILE;
    constexpr int BYTES = 4 * PAIR;
    if (first) {
        _tile_loadd(0, sums, BYTES);
        _tile_loadd(1, sums + SIDE, BYTES);
        _tile_loadd(2, sums + SIDE * PAIR, BYTES);
        _tile_loadd(3, sums + SIDE * PAIR + SIDE, BYTES);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (std::int64_t t = first; t < last; ++t) {
        const std::int64_t l = t * L * TILE, r = t * R * TILE;
        _tile_loadd(6, right + r, 64);
        _tile_loadd(7, beside + r, 64);
        if (L == 2) {
            _tile_loadd(4, left + l + TILE, 64);
            _tile_loadd(5, below + l + TILE, 64);
            multiply();
        }
        _tile_loadd(4, left + l, 64);
        _tile_loadd(5, below + l, 64);
        multiply();
        if (R == 2) {
            _tile_loadd(6, right + r + TILE, 64);
            _tile_loadd(7, beside + r + TILE, 64);
            multiply();
        }
    }
    _tile_stored(0, sums, BYTES);
    _tile_stored(1, sums + SIDE, BYTES);
    _tile_stored(2, sums + SIDE * PAIR, BYTES);
    _tile_stored(3, sums + SIDE * PAIR + SIDE, BYTES);
}

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
std::unique_ptr<T, Free> buffer(std::int64_t values) {
    return std::unique_ptr<T, Free>(static_cast<T*>(std::aligned_alloc(64, std::size_t(values) * sizeof(T))));
}

template <class S>
const S* at(const Matrix& m, std::int64_t row, std::int64_t column = 0) {
    return reinterpret_cast<const S*>(m.address) + row * m.stride + column;
}
template <class D>
D* to(const Matrix& m, std::int64_t row, std::int64_t column = 0) {
    return reinterpret_cast<D*>(m.address) + row * m.stride + column;
}

// The product of a block of X after the other with the factor of `n` rows. LEFT: the factor is the left
// operand and X a right one, packed by columns. begin(start, width) is called for each block of X, write(x,
// f, sums) for its 32 x 32 sums at x in X and f in the factor.
template <class S, bool LEFT, class Begin, class Write>
void product(const Matrix& x, const Half* factor, std::int64_t n, const Team& team, const Begin& begin,
             const Write& write) {
    constexpr int parts = parts_of<S>;
    const std::int64_t depth = LEFT ? x.rows : x.columns, size = LEFT ? x.columns : x.rows,
                       count = tiles(depth);
    if (!size) return;
    const std::int64_t share = (size + team.threads - 1) / team.threads, limit = BLOCK / parts;
    const std::int64_t step = pairs((share + (share - 1) / limit) / ((share - 1) / limit + 1)) * PAIR;
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
                            float* const to = sums.get() + (f * wide + i) * PAIR * PAIR;
                            const Half *const a = fixed + f * panel * 2, *const b =
                                                                             packed.get() + i * panel * parts;
                            const std::int64_t stop = std::min(t + CHUNK, count);
                            if (LEFT)
                                add_product<2, parts>(to, a, b, count, t, stop);
                            else
                                add_product<parts, 2>(to, b, a, count, t, stop);
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
