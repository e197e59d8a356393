// Counting numbers by the bits of their exponent; compiled by each_set.h.

template <class T>
static std::int64_t count_set(const char* first, std::int64_t count, T exponent) {
    constexpr std::int64_t SOME = 1 << 15;  // so many are counted in a lane of their own size
    std::int64_t total = 0;
    for (std::int64_t at = 0; at < count; at += SOME) {
        const std::int64_t n = std::min(SOME, count - at);
        const char* const here = first + at * std::int64_t(sizeof(T));
        T found = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            T bits;
            std::memcpy(&bits, here + i * std::int64_t(sizeof(T)), sizeof(T));
            found = T(found + T((bits & exponent) == exponent));
        }
        total += std::int64_t(found);
    }
    return total;
}

static std::int64_t count_of(const char* first, std::int64_t count, int bytes, std::uint64_t exponent) {
    if (bytes == 2) return count_set(first, count, std::uint16_t(exponent));
    if (bytes == 4) return count_set(first, count, std::uint32_t(exponent));
    return count_set(first, count, exponent);
}

static const Count loops = count_of;
