// bfloat16 and float16 as bits, to and from float32, rounded to the nearest even; without branches, so that
// loops over them become vector instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ligo {

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

inline float from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline std::uint32_t to_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return from_bits(std::uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
    const std::uint32_t word = std::uint32_t(x.bits) << 16, sign = word & 0x80000000u, twice = word + word;
    const float normal = from_bits((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;  // rebiases the exponent
    const float small = from_bits((twice >> 17) | (126u << 23)) - 0.5f;          // subnormal in float16
    return from_bits(sign | (twice < (1u << 27) ? to_bits(small) : to_bits(normal)));
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, BFloat16& out) {
    const std::uint32_t bits = to_bits(x), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    out.bits = std::uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
inline void narrow(float x, Float16& out) {
    const std::uint32_t word = to_bits(x), sign = word & 0x80000000u, twice = word + word;
    const std::uint32_t exponent = twice & 0xFF000000u,
                        bias = exponent < 0x71000000u ? 0x71000000u : exponent;
    // adding a power of two far above x leaves the float16 mantissa, rounded, in the low bits
    const float scaled = (std::fabs(x) * 0x1.0p+112f) * 0x1.0p-110f;
    const std::uint32_t bits = to_bits(from_bits((bias >> 1) + 0x07800000u) + scaled);
    const std::uint32_t number = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
    out.bits = std::uint16_t((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : number));
}

}  // namespace ligo
