// Sums of a few elements:  out[r, c] = sum_q s_q sum_k w_k sum_p s_p in_k[i_p, j_q],
// p in the list of row r, q in that of column c, k over the sources. With lists of one it blends layers under
// a selection; with the inverse of a selection's index for lists it is the adjoint, a scatter-add without
// atomics.
//
// Every out is summed by one thread in this order, with fused multiply-adds: the same bits on a CPU and on a
// GPU, on any number of threads.
#pragma once

#include <cmath>
#include <cstdint>

#include "select.h"

namespace ligo::sums {

// For each row (column) of out a list of rows (columns) of the sources, from starts[r] to starts[r + 1]; with
// starts = 0 row r alone.
struct Lists {
    std::int64_t size;  // of out
    std::int64_t old;   // of the sources
    std::int64_t in_stride, out_stride;
    std::int64_t starts;  // address of int32[size + 1]; or 0
    std::int64_t index;   // address of int32[starts[size]]
    std::int64_t scale;   // address of as many float32; or 0 for ones
    std::int64_t tile;    // how many of them a tile has

    LIGO_BOTH std::int32_t begin(std::int64_t r) const {
        return starts ? reinterpret_cast<const std::int32_t*>(starts)[r] : std::int32_t(r);
    }
    LIGO_BOTH std::int64_t source(std::int32_t p) const {
        return starts ? reinterpret_cast<const std::int32_t*>(index)[p] : p;
    }
    LIGO_BOTH float factor(std::int32_t p) const {
        return scale ? reinterpret_cast<const float*>(scale)[p] : 1.0f;
    }
    LIGO_BOTH std::int64_t end(std::int64_t first) const { return first + tile < size ? first + tile : size; }
};

struct Term {
    std::int64_t in;     // address
    std::int64_t scale;  // w_k: the bits of a float32
};

// One matrix; all of it int64, as Python writes it: ligo_fast/native/sums.py.
struct Sum {
    std::int64_t out, in_type, out_type;
    std::int64_t terms, term_count;  // address of Term[term_count]
    Lists rows, columns;

    LIGO_BOTH const Term& term(std::int64_t k) const { return reinterpret_cast<const Term*>(terms)[k]; }
    LIGO_BOTH std::int64_t out_at(std::int64_t r, std::int64_t c) const {
        return r * rows.out_stride + c * columns.out_stride;
    }
};

// f(w_k s_p, the address of element (i_p, 0) of source k) for the elements of row r, in order.
template <class S, class F>
LIGO_BOTH void for_row(const Sum& sum, std::int64_t r, F f) {
    for (std::int64_t k = 0; k < sum.term_count; ++k) {
        const Term& term = sum.term(k);
        for (std::int32_t p = sum.rows.begin(r); p < sum.rows.begin(r + 1); ++p)
            f(selection::float_of(term.scale) * sum.rows.factor(p),
              reinterpret_cast<const S*>(term.in) + sum.rows.source(p) * sum.rows.in_stride);
    }
}

// What a column of out is made of the row's sums: part(j) is that of column j of the sources.
template <class F>
LIGO_BOTH float for_column(const Sum& sum, std::int64_t c, F part) {
    float total = 0.0f;
    for (std::int32_t q = sum.columns.begin(c); q < sum.columns.begin(c + 1); ++q)
        total = fmaf(sum.columns.factor(q), part(sum.columns.source(q)), total);
    return total;
}

}  // namespace ligo::sums
