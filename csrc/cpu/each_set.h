// The file LOOPS, which defines `loops`, compiled once per instruction set with its VECTOR_BYTES, in a
// namespace of its own.

#ifdef LIGO_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,fma")
namespace avx512 {
#define VECTOR_BYTES 64
#include LOOPS
#undef VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define VECTOR_BYTES 32
#include LOOPS
#undef VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace plain {
#define VECTOR_BYTES 16
#include LOOPS
#undef VECTOR_BYTES
}  // namespace plain

// Of the set in use.
static const auto& chosen() {
#ifdef LIGO_X86
    if (in_use() == Set::AVX512) return avx512::loops;
    if (in_use() == Set::AVX2) return avx2::loops;
#endif
    return plain::loops;
}
