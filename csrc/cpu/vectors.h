// Vectors of floats of the instruction set that each_set.h compiles for.

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));

static inline Vec load(const void* p) { return *static_cast<const Loose*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

// Past the cache; p is a multiple of VECTOR_BYTES.
static inline void stream_to(float* p, Vec v) {
#if VECTOR_BYTES == 64
    _mm512_stream_ps(p, __m512(v));
#elif VECTOR_BYTES == 32
    _mm256_stream_ps(p, __m256(v));
#else
    store(p, v);
#endif
}
