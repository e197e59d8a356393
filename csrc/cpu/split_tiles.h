// Packing of operands and the product of two pairs of panels; included by split.cpp where the compiler may
// use AVX-512 and AMX.

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
