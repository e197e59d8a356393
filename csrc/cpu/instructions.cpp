#include "instructions.h"

#include <utility>

namespace ligo {
namespace {

std::vector<std::pair<std::string, Set>> available() {
    std::vector<std::pair<std::string, Set>> found;
#ifdef LIGO_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        found.emplace_back("avx512", Set::AVX512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.emplace_back("avx2", Set::AVX2);
#endif
    found.emplace_back("plain", Set::PLAIN);
    return found;
}

Set& chosen() {
    static Set best = available().front().second;
    return best;
}

}  // namespace

std::vector<std::string> instructions() {
    std::vector<std::string> names;
    for (const auto& [name, unused] : available()) names.push_back(name);
    return names;
}

bool use(const std::string& name) {
    for (const auto& [known, set] : available())
        if (known == name) {
            chosen() = set;
            return true;
        }
    return false;
}

Set in_use() { return chosen(); }

}  // namespace ligo
