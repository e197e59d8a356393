// Random numbers that depend on a seed and a position only: Philox-4x32-10 (Salmon, Moraes, Dror & Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// Element n of a stream is word n % 4 of the block with counter (n / 4, stream) and the seed for a key.
// Normals are its inverse distribution function at the middle of one of 2^23 equal steps, in float32
// operations that IEEE 754 defines to the bit, none of them fused and none of a library: the same bits on a
// CPU, on a GPU and in torch (ligo_fast/native/noise.py). Whoever includes this switches the contraction of
// products and sums off.
#pragma once

#include <cmath>
#include <cstdint>

#include "select.h"

namespace ligo::philox {

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float div(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float root(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ std::int32_t bits_of(float x) { return __float_as_int(x); }
#else
LIGO_BOTH float mul(float a, float b) { return a * b; }
LIGO_BOTH float add(float a, float b) { return a + b; }
LIGO_BOTH float div(float a, float b) { return a / b; }
LIGO_BOTH float root(float a) { return sqrtf(a); }
LIGO_BOTH std::int32_t bits_of(float x) {
    std::int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
#endif

struct Block {
    std::uint32_t word[4];
};

LIGO_BOTH Block block(std::uint64_t counter, std::uint64_t stream, std::uint64_t seed) {
    auto a = std::uint32_t(counter), b = std::uint32_t(counter >> 32);
    auto c = std::uint32_t(stream), d = std::uint32_t(stream >> 32);
    auto low = std::uint32_t(seed), high = std::uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t x = 0xD2511F53ull * a, y = 0xCD9E8D57ull * c;
        a = std::uint32_t(y >> 32) ^ b ^ low;
        b = std::uint32_t(y);
        c = std::uint32_t(x >> 32) ^ d ^ high;
        d = std::uint32_t(x);
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

// log(t) for 0 < t < 1, to 1e-7: t = m 2^e with m about 1, and the series of 2 atanh((m - 1) / (m + 1)).
LIGO_BOTH float logarithm(float t) {
    const std::int32_t bits = bits_of(t), shifted = bits - 0x3F3504F3;  // sqrt(1/2)
    const std::int32_t exponent = shifted >> 23;
    const float m = selection::float_of(bits - exponent * (1 << 23));
    const float s = div(add(m, -1.0f), add(m, 1.0f)), z = mul(s, s);
    float p = 1.0f / 9;
    p = add(mul(p, z), 1.0f / 7);
    p = add(mul(p, z), 1.0f / 5);
    p = add(mul(p, z), 1.0f / 3);
    p = add(mul(p, z), 1.0f);
    return add(mul(float(exponent), 0.69314718f), mul(mul(p, s), 2.0f));
}

// A normal number from 23 of a word's bits: sqrt(2) erfinv(x) with the two polynomials of M. Giles,
// "Approximating the erfinv function" (GPU Computing Gems, 2011).
LIGO_BOTH float normal(std::uint32_t word) {
    const std::int32_t odd = std::int32_t(word >> 9) * 2 + 1;
    const float x = mul(float(odd - (1 << 23)), 0x1p-23f);
    const float t = mul(mul(float(odd), 0x1p-23f), mul(float((1 << 24) - odd), 0x1p-23f));  // (1 + x) (1 - x)
    const float w = mul(logarithm(t), -1.0f);
    constexpr float MIDDLE[] = {2.81022636e-08f,  3.43273939e-07f, -3.5233877e-06f,
                                -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
                                -0.00417768164f,  0.246640727f,    1.50140941f};
    constexpr float TAIL[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                              -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                              0.00943887047f,   1.00167406f,     2.83297682f};
    const bool tail = w >= 5.0f;
    const float v = tail ? add(root(w), -3.0f) : add(w, -2.5f);
    float p = tail ? TAIL[0] : MIDDLE[0];
    for (int i = 1; i < 9; ++i) p = add(mul(p, v), tail ? TAIL[i] : MIDDLE[i]);
    return mul(mul(p, x), 1.41421356f);
}

}  // namespace ligo::philox
