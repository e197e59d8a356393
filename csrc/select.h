// Selection: out[r, c] = s_l * s_r[r] * s_c[c] * in[i(r), j(c)], with a cast, for many matrices in one call.
//
// What the CPU and the CUDA code share: the table's layout, and the arithmetic on indices and scales, which
// is thereby tested on every machine. It moves the bytes of in and out once and computes nothing to speak of.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LIGO_BOTH __host__ __device__ __forceinline__
#else
#define LIGO_BOTH inline
#endif

namespace ligo::selection {

enum Type : std::int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// A float32 from its bits, which Python writes as an int64.
LIGO_BOTH float float_of(std::int64_t bits) {
    union {
        std::int32_t bits;
        float value;
    } u;
    u.bits = std::int32_t(bits);
    return u.value;
}

// The rows or the columns of an item. Sizes and strides count elements.
struct Side {
    std::int64_t size;  // of out
    std::int64_t in_stride;
    std::int64_t out_stride;
    std::int64_t index;  // address of int32[size], -1 for zero; or 0 for the units start, start + 1, ...
    std::int64_t start;
    std::int64_t scale;  // address of float32[size]; or 0 for ones
    std::int64_t runs;   // address of Run[run_count], the same as `index` in long pieces; CPU only
    std::int64_t run_count;
    std::int64_t tile;  // how many of them a tile has

    LIGO_BOTH std::int64_t source(std::int64_t i) const {
        return index ? reinterpret_cast<const std::int32_t*>(index)[i] : start + i;
    }
    LIGO_BOTH float factor(std::int64_t i) const {
        return scale ? reinterpret_cast<const float*>(scale)[i] : 1.0f;
    }
    LIGO_BOTH std::int64_t end(std::int64_t first) const { return first + tile < size ? first + tile : size; }
};

// Columns first .. first + count - 1 come from source, source + 1, ...; or are ZERO; or as the index says.
struct Run {
    std::int32_t first, count, source;
};
constexpr std::int32_t ZERO = -1, SCATTERED = -2;

// One matrix. All of it int64, as Python writes it: ligo_fast/native/select.py.
struct Item {
    std::int64_t in, out;  // addresses
    std::int64_t in_type, out_type;
    std::int64_t scale;          // s_l: the bits of a float32
    std::int64_t columns_first;  // s_c before s_r, for an item that Python turned around: rounding as before
    Side rows, columns;

    LIGO_BOTH float layer() const { return float_of(scale); }
    LIGO_BOTH std::int64_t in_at(std::int64_t i, std::int64_t j) const {
        return i * rows.in_stride + j * columns.in_stride;
    }
    LIGO_BOTH std::int64_t out_at(std::int64_t r, std::int64_t c) const {
        return r * rows.out_stride + c * columns.out_stride;
    }
    LIGO_BOTH float scaled(float x, float row, float column, float layer) const {
        return (columns_first ? x * column * row : x * row * column) * layer;
    }
};

// A rectangle of one item, from (row, column) on, of the item's tile sizes.
struct Tile {
    std::int32_t item, row, column;
};

// The bytes that one access may have at an address and at all addresses `stride` bytes apart: 16 or less.
LIGO_BOTH int widest(std::int64_t address, std::int64_t stride) {
    const std::int64_t low = address | stride | 16;
    return int(low & -low);
}

}  // namespace ligo::selection
