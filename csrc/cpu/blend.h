// Mixing the layers of a stack: the short axis of growth (L1 -> L2, at most some hundred layers).
//
//     combine   out[r] = sum_c M[r, c] in[c]                    forward: M = D, adjoint: M = D^T
//     pull      Zg[j] = sum_l D[l, j] G[l],  dD[l, j] = <G[l], Z[j]>,  and Z[j] = sum_l B[j, l] Y[l] if asked
//
// Each large layer is read or written exactly once; the small stacks stay in the cache. The time is that
// of the memory: combine moves 4 (C + R) bytes an element, pull 4 (2 L2 + 2 L1) at most.
#pragma once

#include <cstdint>
#include <vector>

#include "../select.h"
#include "parallel.h"

namespace ligo {

// Layers of equal shape (rows, columns) and type with inner stride 1; a row stride of their own each.
struct Stack {
    std::vector<std::uintptr_t> pointers;
    std::vector<std::int64_t> strides;  // of a row, in elements
    selection::Type type = selection::FLOAT32;

    std::size_t size() const { return pointers.size(); }
    float* row(std::size_t layer, std::int64_t row, std::int64_t column = 0) const {
        return reinterpret_cast<float*>(pointers[layer]) + row * strides[layer] + column;
    }
    void* half(std::size_t layer, std::int64_t row, std::int64_t column) const {
        return reinterpret_cast<std::uint16_t*>(pointers[layer]) + row * strides[layer] + column;
    }
};

// out = M in, with M (out.size(), in.size()) row-major, in float32; out may be of any type and is rounded
// once. With `stream` the stores of float32 pass the cache by.
void combine(const Stack& out, const float* matrix, const Stack& in, std::int64_t rows, std::int64_t columns,
             bool stream, const Team& team);

// mixed = transposed grads and sums[l, j] = <grads[l], z[j]>; z may be empty. Where
// `inverse` (z.size(), grown.size()) is given, z = inverse grown is written first; where it is null, z is
// read. The sums do not depend on the number of threads.
void pull(const Stack& mixed, const float* transposed, const Stack& grads, const Stack& z,
          const float* inverse, const Stack& grown, double* sums, std::int64_t rows, std::int64_t columns,
          const Team& team);

}  // namespace ligo
