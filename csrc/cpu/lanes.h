// The inner loops over columns, for vectors of WIDTH floats; compiled by each_set.h. `n` is a multiple of
// STEP; rows need no alignment unless they are streamed to.

#include "vectors.h"

constexpr std::int64_t WIDTH = VECTOR_BYTES / 4;
constexpr std::int64_t STEP = 2 * WIDTH;  // two vectors share each coefficient that is loaded

// R rows of out = M in.
template <int R, bool STREAM>
static void combine_rows(float* const* out, const float* matrix, const float* const* in, int count,
                         std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += STEP) {
        Vec sum[R][2] = {};
        for (int c = 0; c < count; ++c) {
            const Vec a = load(in[c] + i), b = load(in[c] + i + WIDTH);
            for (int r = 0; r < R; ++r) {
                sum[r][0] += matrix[r * count + c] * a;
                sum[r][1] += matrix[r * count + c] * b;
            }
        }
        for (int r = 0; r < R; ++r) {
            if (STREAM) {
                stream_to(out[r] + i, sum[r][0]);
                stream_to(out[r] + i + WIDTH, sum[r][1]);
            } else {
                store(out[r] + i, sum[r][0]);
                store(out[r] + i + WIDTH, sum[r][1]);
            }
        }
    }
}

template <bool STREAM>
static void combine_all(float* const* out, int rows, const float* matrix, const float* const* in, int count,
                        std::int64_t n) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) combine_rows<4, STREAM>(out + r, matrix + r * count, in, count, n);
    for (; r < rows; ++r) combine_rows<1, STREAM>(out + r, matrix + r * count, in, count, n);
}

static void combine_lanes(float* const* out, int rows, const float* matrix, const float* const* in, int count,
                          std::int64_t n, bool stream) {
    if (stream)
        combine_all<true>(out, rows, matrix, in, count, n);
    else
        combine_all<false>(out, rows, matrix, in, count, n);
}

// sums[r, c] += a[r] * b[c], lane by lane, for R x C pairs; a sum is WIDTH floats.
template <int R, int C>
static void dot_block(float* sums, int stride, const float* const* a, const float* const* b, std::int64_t n) {
    Vec sum[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sum[r][c] = load(sums + (r * stride + c) * WIDTH);
    for (std::int64_t i = 0; i < n; i += WIDTH) {
        Vec right[C];
        for (int c = 0; c < C; ++c) right[c] = load(b[c] + i);
        for (int r = 0; r < R; ++r) {
            const Vec left = load(a[r] + i);
            for (int c = 0; c < C; ++c) sum[r][c] += left * right[c];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(sums + (r * stride + c) * WIDTH, sum[r][c]);
}

template <int R>
static void dot_rows(float* sums, int stride, const float* const* a, const float* const* b, int columns,
                     std::int64_t n) {
    int c = 0;
    for (; c + 2 <= columns; c += 2) dot_block<R, 2>(sums + c * WIDTH, stride, a, b + c, n);
    if (c < columns) dot_block<R, 1>(sums + c * WIDTH, stride, a, b + c, n);
}

static void dot_lanes(float* sums, const float* const* a, int rows, const float* const* b, int columns,
                      std::int64_t n) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) dot_rows<4>(sums + r * columns * WIDTH, columns, a + r, b, columns, n);
    for (; r < rows; ++r) dot_rows<1>(sums + r * columns * WIDTH, columns, a + r, b, columns, n);
}

static void narrow_lanes(void* out, selection::Type type, const float* in, std::int64_t n) {
    const auto all = [=](auto* to) {
        for (std::int64_t i = 0; i < n; ++i) narrow(in[i], to[i]);
    };
    if (type == selection::BFLOAT16)
        all(static_cast<BFloat16*>(out));
    else
        all(static_cast<Float16*>(out));
}

static const Lanes loops = {WIDTH, STEP, combine_lanes, dot_lanes, narrow_lanes};
