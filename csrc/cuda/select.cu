// out[r, c] = s_l * s_r[r] * s_c[c] * in[i(r), j(c)]: bytes(in) + bytes(out) are moved once, no other work.
// A block has one tile. A thread stores as many neighbouring columns at once as 16 bytes and alignment allow,
// and loads them at once too where they are neighbours in the source.

#include <cuda_runtime.h>

#include "current.h"
#include "numbers.h"
#include "select.h"

namespace ligo::cuda {
namespace {

using namespace selection;

constexpr int THREADS = 256;
constexpr int AHEAD = 2;    // groups that a thread has on their way at once
constexpr int CORNER = 32;  // a transposed tile is worked off in squares of this side

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T values[N];
};

// V values of row i of the source, columns c .. c + V - 1 of out, scaled.
template <class S, class D, int V>
__device__ __forceinline__ Pack<D, V> gather(const Item& item, std::int64_t i, float row, float layer,
                                             std::int64_t c) {
    Pack<D, V> out;
    Pack<S, V> x;
    const S* const in = reinterpret_cast<const S*>(item.in) + item.in_at(i < 0 ? 0 : i, 0);
    const std::int64_t first = item.columns.source(c), stride = item.columns.in_stride;
    bool neighbours = i >= 0 && first >= 0 && stride == 1;
#pragma unroll
    for (int k = 1; k < V; ++k) neighbours = neighbours && item.columns.source(c + k) == first + k;
    if (neighbours && reinterpret_cast<std::uintptr_t>(in + first) % alignof(Pack<S, V>) == 0) {
        x = *reinterpret_cast<const Pack<S, V>*>(in + first);
#pragma unroll
        for (int k = 0; k < V; ++k)
            narrow(item.scaled(widen(x.values[k]), row, item.columns.factor(c + k), layer), out.values[k]);
        return out;
    }
#pragma unroll
    for (int k = 0; k < V; ++k) {
        const std::int64_t j = item.columns.source(c + k);
        const bool zero = i < 0 || j < 0;
        const float value = zero ? 0.0f : widen(in[j * stride]);
        narrow(zero ? 0.0f : item.scaled(value, row, item.columns.factor(c + k), layer), out.values[k]);
    }
    return out;
}

// A tile whose columns are neighbours in out, V of them in one store; V divides the tile's width.
template <class S, class D, int V>
__device__ void straight(const Item& item, const Tile& tile) {
    const int width = int(item.columns.end(tile.column) - tile.column) / V;
    const int height = int(item.rows.end(tile.row) - tile.row);
    const float layer = item.layer();
    for (int group = threadIdx.x; group < width * height; group += THREADS * AHEAD) {
        Pack<D, V> values[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const int g = group + a * THREADS;
            if (g >= width * height) break;
            const std::int64_t r = tile.row + g / width, c = tile.column + g % width * V;
            values[a] = gather<S, D, V>(item, item.rows.source(r), item.rows.factor(r), layer, c);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const int g = group + a * THREADS;
            if (g >= width * height) break;
            const std::int64_t r = tile.row + g / width, c = tile.column + g % width * V;
            *reinterpret_cast<Pack<D, V>*>(reinterpret_cast<D*>(item.out) + item.out_at(r, c)) = values[a];
        }
    }
}

using Square = float[CORNER][CORNER + 1];  // one more, against conflicts of banks

// A tile whose columns are apart in the source and whose rows are not: squares through shared memory, so that
// neighbouring threads read and write neighbouring addresses.
template <class S, class D>
__device__ void transposed(const Item& item, const Tile& tile, Square& square) {
    const int x = threadIdx.x % CORNER, y = threadIdx.x / CORNER;
    const std::int64_t last_row = item.rows.end(tile.row), last_column = item.columns.end(tile.column);
    const float layer = item.layer();
    for (std::int64_t r0 = tile.row; r0 < last_row; r0 += CORNER) {
        for (std::int64_t c0 = tile.column; c0 < last_column; c0 += CORNER) {
            __syncthreads();
            for (int k = y; k < CORNER; k += THREADS / CORNER) {
                const std::int64_t r = r0 + x, c = c0 + k;
                if (r >= last_row || c >= last_column) continue;
                const std::int64_t i = item.rows.source(r), j = item.columns.source(c);
                float value = 0.0f;
                if (i >= 0 && j >= 0)
                    value = item.scaled(widen(reinterpret_cast<const S*>(item.in)[item.in_at(i, j)]),
                                        item.rows.factor(r), item.columns.factor(c), layer);
                square[k][x] = value;
            }
            __syncthreads();
            for (int k = y; k < CORNER; k += THREADS / CORNER) {
                const std::int64_t r = r0 + k, c = c0 + x;
                if (r < last_row && c < last_column)
                    narrow(square[x][k], reinterpret_cast<D*>(item.out)[item.out_at(r, c)]);
            }
        }
    }
}

template <class S, class D>
__device__ void work(const Item& item, const Tile& tile, Square& square) {
    const Side& columns = item.columns;
    if (columns.out_stride != 1 || (columns.in_stride != 1 && item.rows.in_stride == 1 && !item.rows.index))
        return transposed<S, D>(item, tile, square);
    const std::int64_t first = item.out + tile.column * sizeof(D), size = sizeof(D);
    const std::int64_t width = columns.end(tile.column) - tile.column;
    const int bytes = widest(first | width * size, item.rows.out_stride * size);
    constexpr int MOST = 16 / sizeof(D);
    if (bytes >= 16) return straight<S, D, MOST>(item, tile);
    if (bytes >= 8) return straight<S, D, MOST / 2>(item, tile);
    if (bytes >= 4) return straight<S, D, MOST / 4>(item, tile);
    straight<S, D, 1>(item, tile);
}

template <class S>
__device__ void work_from(const Item& item, const Tile& tile, Square& square) {
    if (item.out_type == FLOAT32) return work<S, float>(item, tile, square);
    if (item.out_type == BFLOAT16) return work<S, __nv_bfloat16>(item, tile, square);
    work<S, __half>(item, tile, square);
}

__global__ void __launch_bounds__(THREADS, 3) select_tiles(const Item* items, const Tile* tiles) {
    __shared__ Square square;
    __shared__ std::int64_t words[sizeof(Item) / 8];  // in shared memory it takes no registers
    const Tile tile = tiles[blockIdx.x];
    if (threadIdx.x < sizeof(Item) / 8)
        words[threadIdx.x] = reinterpret_cast<const std::int64_t*>(items + tile.item)[threadIdx.x];
    __syncthreads();
    const Item& item = *reinterpret_cast<const Item*>(words);
    if (item.in_type == FLOAT32) return work_from<float>(item, tile, square);
    if (item.in_type == BFLOAT16) return work_from<__nv_bfloat16>(item, tile, square);
    work_from<__half>(item, tile, square);
}

}  // namespace

int select(const Item* items, const Tile* tiles, std::int64_t count, int device, void* stream) {
    if (count == 0) return cudaSuccess;
    const Current current(device);
    if (current.error()) return current.error();
    select_tiles<<<unsigned(count), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(items, tiles);
    return cudaGetLastError();
}

int device_count(int& count) {
    count = 0;
    return cudaGetDeviceCount(&count);
}

const char* message(int error) { return cudaGetErrorString(cudaError_t(error)); }

void versions(int& driver, int& runtime) {
    driver = runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
}

}  // namespace ligo::cuda
