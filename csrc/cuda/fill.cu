// Normal numbers, four for each thread: 4 bytes written for each.

#include "fill.h"

#include <cuda_runtime.h>

#include "../philox.h"
#include "current.h"

namespace ligo::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    normal_blocks(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t numbers) {
    const std::int64_t at = std::int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (4 * at >= count) return;
    const philox::Block block = philox::block(std::uint64_t(at), numbers, seed);
    for (int i = 0; i < 4 && 4 * at + i < count; ++i) out[4 * at + i] = philox::normal(block.word[i]);
}

}  // namespace

int normals(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t numbers, int device,
            void* stream) {
    if (count == 0) return cudaSuccess;
    const Current current(device);
    if (current.error()) return current.error();
    const std::int64_t blocks = (count + 4 * THREADS - 1) / (4 * THREADS);
    normal_blocks<<<unsigned(blocks), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(out, count, seed,
                                                                                       numbers);
    return cudaGetLastError();
}

}  // namespace ligo::cuda
