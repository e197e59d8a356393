// Sums of a few elements, one thread for each element of out: no atomics, and the order of ../sum.h.
// Neighbouring threads have neighbouring columns, which are read together where they are neighbours in the
// sources too.

#include "sum.h"

#include <cuda_runtime.h>

#include "current.h"
#include "numbers.h"

namespace ligo::cuda {
namespace {

using selection::BFLOAT16;
using selection::FLOAT32;
using selection::Tile;
using sums::Sum;

constexpr int THREADS = 256;

template <class S, class D>
__device__ void work(const Sum& sum, const Tile& tile) {
    const int width = int(sum.columns.end(tile.column) - tile.column);
    const int height = int(sum.rows.end(tile.row) - tile.row);
    for (int n = threadIdx.x; n < width * height; n += THREADS) {
        const std::int64_t r = tile.row + n / width, c = tile.column + n % width;
        const float total = sums::for_column(sum, c, [&](std::int64_t j) {
            float part = 0.0f;
            sums::for_row<S>(sum, r, [&](float scale, const S* in) {
                part = fmaf(scale, widen(in[j * sum.columns.in_stride]), part);
            });
            return part;
        });
        narrow(total, reinterpret_cast<D*>(sum.out)[sum.out_at(r, c)]);
    }
}

template <class S>
__device__ void work_from(const Sum& sum, const Tile& tile) {
    if (sum.out_type == FLOAT32) return work<S, float>(sum, tile);
    if (sum.out_type == BFLOAT16) return work<S, __nv_bfloat16>(sum, tile);
    work<S, __half>(sum, tile);
}

__global__ void __launch_bounds__(THREADS) sum_tiles(const Sum* table, const Tile* tiles) {
    const Tile tile = tiles[blockIdx.x];
    const Sum& sum = table[tile.item];
    if (sum.in_type == FLOAT32) return work_from<float>(sum, tile);
    if (sum.in_type == BFLOAT16) return work_from<__nv_bfloat16>(sum, tile);
    work_from<__half>(sum, tile);
}

}  // namespace

int sum(const Sum* table, const Tile* tiles, std::int64_t count, int device, void* stream) {
    if (count == 0) return cudaSuccess;
    const Current current(device);
    if (current.error()) return current.error();
    sum_tiles<<<unsigned(count), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(table, tiles);
    return cudaGetLastError();
}

}  // namespace ligo::cuda
