// The loops of a tile; compiled by each_set.h.

#include "vectors.h"

// Whole cache lines past the cache.
static inline void stream_lines(void* to, const void* from, std::int64_t lines) {
    for (std::int64_t at = 0; at < lines * LINE_BYTES; at += VECTOR_BYTES)
        stream_to(reinterpret_cast<float*>(static_cast<char*>(to) + at),
                  load(static_cast<const char*>(from) + at));
}

// to[k] = in[index[k]], zero where the index is negative; returns how many it did.
static inline std::int64_t gather(float* to, const float* in, const std::int32_t* index, std::int64_t n) {
    std::int64_t k = 0;
#if VECTOR_BYTES == 64
    for (; k < n; k += 16) {
        const __mmask16 some = __mmask16((1u << std::min<std::int64_t>(16, n - k)) - 1);
        const __m512i at = _mm512_maskz_loadu_epi32(some, index + k);
        const __mmask16 given = _mm512_mask_cmpge_epi32_mask(some, at, _mm512_setzero_si512());
        _mm512_mask_storeu_ps(to + k, some, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), given, at, in, 4));
    }
    return n;
#elif VECTOR_BYTES == 32
    for (; k + 8 <= n; k += 8) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + k));
        const __m256 given = _mm256_castsi256_ps(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(-1)));
        _mm256_storeu_ps(to + k, _mm256_mask_i32gather_ps(_mm256_setzero_ps(), in, at, given, 4));
    }
#endif
    return k;
}

// to[k] = in[index[k] * stride], zero where the index is negative; without a branch.
template <class S>
static inline void collect(S* to, const S* in, const std::int32_t* index, std::int64_t n,
                           std::int64_t stride) {
    const S zero{};
    for (std::int64_t k = 0; k < n; ++k) {
        const S* const from = index[k] < 0 ? &zero : in + index[k] * stride;
        to[k] = *from;
    }
}
static inline void collect(float* to, const float* in, const std::int32_t* index, std::int64_t n,
                           std::int64_t stride) {
    const std::int64_t body = stride == 1 ? gather(to, in, index, n) : 0;
    collect<float>(to + body, in, index + body, n - body, stride);
}

// Columns of one row of out from the row `in` of the source.
template <class S, class D>
struct Columns {
    const Item& item;
    const S* in;
    D* out;  // of column `first`
    std::int64_t first, last;
    float row, layer;

    // to[k] = x[k * stride], scaled; plain loops, which become vector instructions.
    void scale(D* to, std::int64_t from, std::int64_t n, const S* x, std::int64_t stride) const {
        const auto* const by = reinterpret_cast<const float*>(item.columns.scale);
        const auto each = [=](auto value) {
            for (std::int64_t k = 0; k < n; ++k) narrow(value(widen(x[k * stride]), k), to[k]);
        };
        const float row = this->row, layer = this->layer;
        const bool plain = row == 1.0f && layer == 1.0f;  // then two products less
        if (!by && plain)
            each([](float value, std::int64_t) { return value; });
        else if (!by)
            each([=](float value, std::int64_t) { return value * row * layer; });
        else if (plain)
            each([=](float value, std::int64_t k) { return value * by[from + k]; });
        else if (item.columns_first)
            each([=](float value, std::int64_t k) { return value * by[from + k] * row * layer; });
        else
            each([=](float value, std::int64_t k) { return value * row * by[from + k] * layer; });
    }

    // Columns here and there: collected first, zeros among them.
    void scattered(D* to, std::int64_t from, std::int64_t n) const {
        const std::int32_t* const index = reinterpret_cast<const std::int32_t*>(item.columns.index) + from;
        alignas(LINE_BYTES) S found[COLLECTED];
        for (std::int64_t c = 0; c < n; c += COLLECTED) {
            const std::int64_t some = std::min<std::int64_t>(COLLECTED, n - c);
            collect(found, in, index + c, some, item.columns.in_stride);
            scale(to + c, from + c, some, found, 1);
        }
    }

    // Neighbours in the source: a copy, or a loop that the compiler turns into vectors.
    void neighbours(D* to, std::int64_t from, std::int64_t n, std::int64_t source) const {
        const std::int64_t stride = item.columns.in_stride;
        if (stride != 1)
            scale(to, from, n, in + source * stride, stride);
        else if (std::is_same_v<S, D> && row == 1.0f && layer == 1.0f && !item.columns.scale)
            std::memcpy(to, in + source, n * sizeof(D));
        else
            scale(to, from, n, in + source, 1);
    }

    // Columns from..from + n - 1 into `to`; `run` is where the last call stopped.
    void fill(D* to, std::int64_t from, std::int64_t n, const Run*& run) const {
        if (!item.columns.index) return neighbours(to, from, n, item.columns.source(from));
        for (std::int64_t c = from; c < from + n;) {
            while (run->first + run->count <= c) ++run;
            const std::int64_t stop = std::min<std::int64_t>(from + n, run->first + run->count);
            D* const here = to + (c - from);
            if (run->source == ZERO)
                std::memset(static_cast<void*>(here), 0, (stop - c) * sizeof(D));
            else if (run->source == SCATTERED)
                scattered(here, c, stop - c);
            else
                neighbours(here, c, stop - c, run->source + c - run->first);
            c = stop;
        }
    }

    // Straight into out; or a cache line after the other, each put together in a buffer and stored at once.
    void write(bool stream) const {
        const Run* run = reinterpret_cast<const Run*>(item.columns.runs);
        const std::int64_t ahead = -reinterpret_cast<std::intptr_t>(out) & (LINE_BYTES - 1);
        const std::int64_t head = std::min<std::int64_t>(last - first, ahead / sizeof(D));
        if (!stream || ahead % sizeof(D) || last - first - head < std::int64_t(LINE_BYTES / sizeof(D)))
            return fill(out, first, last - first, run);
        fill(out, first, head, run);
        D* to = out + head;
        const bool copies = std::is_same_v<S, D> && !item.columns.index && item.columns.in_stride == 1 &&
                            row == 1.0f && layer == 1.0f && !item.columns.scale;
        const std::int64_t lines = (last - first - head) * sizeof(D) / LINE_BYTES,
                           each = LINE_BYTES / sizeof(D);
        std::int64_t c = first + head;
        if (copies) {
            stream_lines(to, in + item.columns.source(c), lines);
        } else {
            alignas(LINE_BYTES) D buffer[BUFFER_LINES * LINE_BYTES / sizeof(D)];
            for (std::int64_t line = 0; line < lines; line += BUFFER_LINES) {
                const std::int64_t n = std::min<std::int64_t>(BUFFER_LINES, lines - line);
                fill(buffer, c + line * each, n * each, run);
                stream_lines(to + line * each, buffer, n);
            }
        }
        c += lines * each;
        fill(to + lines * each, c, last - c, run);
    }
};

// A row of zeros, past the cache like the others.
static void zeros(char* to, std::int64_t bytes, bool stream) {
    alignas(LINE_BYTES) static const char none[BUFFER_LINES * LINE_BYTES] = {};
    const std::int64_t ahead = -reinterpret_cast<std::intptr_t>(to) & (LINE_BYTES - 1);
    if (stream && bytes >= ahead + LINE_BYTES) {
        std::memset(to, 0, ahead);
        to += ahead;
        bytes -= ahead;
        while (bytes >= LINE_BYTES) {
            const std::int64_t lines = std::min(BUFFER_LINES, bytes / LINE_BYTES);
            stream_lines(to, none, lines);
            to += lines * LINE_BYTES;
            bytes -= lines * LINE_BYTES;
        }
    }
    std::memset(to, 0, bytes);
}

template <class S, class D>
static void rows(const Item& item, const Tile& tile, bool stream) {
    const Side& columns = item.columns;
    const std::int64_t last = columns.end(tile.column), n = last - tile.column;
    const float layer = item.layer();
    for (std::int64_t r = tile.row; r < item.rows.end(tile.row); ++r) {
        D* const out = reinterpret_cast<D*>(item.out) + item.out_at(r, tile.column);
        const std::int64_t i = item.rows.source(r);
        const float row = item.rows.factor(r);
        if (columns.out_stride == 1 && i < 0) {
            zeros(reinterpret_cast<char*>(out), n * sizeof(D), stream);
        } else if (columns.out_stride == 1) {
            const S* const in = reinterpret_cast<const S*>(item.in) + item.in_at(i, 0);
            Columns<S, D>{item, in, out, tile.column, last, row, layer}.write(stream);
        } else {
            for (std::int64_t c = tile.column; c < last; ++c) {
                const std::int64_t j = columns.source(c);
                float x = 0.0f;
                if (i >= 0 && j >= 0)
                    x = item.scaled(widen(reinterpret_cast<const S*>(item.in)[item.in_at(i, j)]), row,
                                    columns.factor(c), layer);
                narrow(x, out[(c - tile.column) * columns.out_stride]);
            }
        }
    }
}

template <class S>
static void rows_from(const Item& item, const Tile& tile, bool stream) {
    if (item.out_type == FLOAT32) return rows<S, float>(item, tile, stream);
    if (item.out_type == BFLOAT16) return rows<S, BFloat16>(item, tile, stream);
    rows<S, Float16>(item, tile, stream);
}

static void work(const Item& item, const Tile& tile, bool stream) {
    if (item.in_type == FLOAT32) return rows_from<float>(item, tile, stream);
    if (item.in_type == BFLOAT16) return rows_from<BFloat16>(item, tile, stream);
    rows_from<Float16>(item, tile, stream);
}

static const Work loops = work;
