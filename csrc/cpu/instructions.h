// The instruction sets that the loops are compiled for, and which of them runs.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIGO_X86 1  // the pragmas of each_set.h are GCC's; other compilers build the plain loops
#include <immintrin.h>
#endif

namespace ligo {

enum class Set { AVX512, AVX2, PLAIN };

// Those that this machine runs ("avx512", "avx2", "plain"), the fastest first; that one is used unless `use`
// names another, for tests. False for one that is not there.
std::vector<std::string> instructions();
bool use(const std::string& name);
Set in_use();

// Stores past the cache are ordered with later ones.
inline void fence() {
#ifdef LIGO_X86
    _mm_sfence();
#endif
}

}  // namespace ligo
