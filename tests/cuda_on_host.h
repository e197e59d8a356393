// Enough of CUDA for csrc/cuda/select.cu to run on the host: a block's threads are threads, blocks take turns.
// It tests what the kernel computes; nothing of how a GPU would run it.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/halves.h"

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct __half {
    ligo::Float16 x;
};
struct __nv_bfloat16 {
    ligo::BFloat16 x;
};
using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0;

inline float __half2float(__half x) { return ligo::widen(x.x); }
inline float __bfloat162float(__nv_bfloat16 x) { return ligo::widen(x.x); }
inline __half __float2half_rn(float x) {
    __half out;
    ligo::narrow(x, out.x);
    return out;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    __nv_bfloat16 out;
    ligo::narrow(x, out.x);
    return out;
}
constexpr int cudaErrorSymbolNotFound = 500, cudaEnableDefault = 0;
inline thread_local void* context = nullptr;  // the driver's; device n has the one at address n + 1
inline int current_device() { return int(reinterpret_cast<std::intptr_t>(context)) - 1; }
inline int launched_on = -1;
inline int cuCtxGetCurrent(void** found) { return *found = context, 0; }
inline int cuCtxSetCurrent(void* given) { return context = given, 0; }
inline int cudaSetDevice(int device) {
    return cuCtxSetCurrent(reinterpret_cast<void*>(device + std::intptr_t{1}));
}
inline int cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, int) {
    const bool gets = std::strcmp(name, "cuCtxGetCurrent") == 0;
    *found = gets ? reinterpret_cast<void*>(&cuCtxGetCurrent) : reinterpret_cast<void*>(&cuCtxSetCurrent);
    return 0;
}
inline int cudaGetLastError() { return 0; }
inline int cudaGetDeviceCount(int*) { return 0; }
inline const char* cudaGetErrorString(int) { return ""; }
inline int cudaDriverGetVersion(int*) { return 0; }
inline int cudaRuntimeGetVersion(int*) { return 0; }

struct Index {
    unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline std::barrier<>* together;
inline void __syncthreads() { together->arrive_and_wait(); }

template <class Kernel, class... Args>
void launch(Kernel kernel, std::int64_t blocks, int threads, Args... args) {
    launched_on = current_device();
    std::barrier barrier(threads);
    together = &barrier;
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t)
        team.emplace_back([=, &barrier] {
            threadIdx.x = t;
            for (std::int64_t block = 0; block < blocks; ++block) {
                blockIdx.x = unsigned(block);
                kernel(args...);
                barrier.arrive_and_wait();
            }
        });
    for (auto& thread : team) thread.join();
}
