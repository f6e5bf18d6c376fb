// Vectors of LANES floats through the compiler's vector types: one text for every instruction set.
// Included inside each set's own namespace, so that no two of them share a function.

typedef float f32 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t i32 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t u32 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double f64 __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
static inline f32 splat(float x) { return x - f32{}; }
static inline i32 isplat(int32_t x) { return x - i32{}; }
static inline f32 load(const float* p) { return *reinterpret_cast<const f32*>(p); }
static inline void store(float* p, f32 x) { *reinterpret_cast<f32*>(p) = x; }

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, i32{__VA_ARGS__})
#endif

// The lanes of two vectors by turns: of their lower and of their upper halves.
static inline f32 zip_low(f32 a, f32 b) {
#if LANES == 16
    return PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif LANES == 8
    return PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return PICK(a, b, 0, 4, 1, 5);
#endif
}

static inline f32 zip_high(f32 a, f32 b) {
#if LANES == 16
    return PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
    return PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return PICK(a, b, 2, 6, 3, 7);
#endif
}

static inline void transpose(f32 (&x)[LANES]) {
#pragma GCC unroll 4
    for (int stage = 1; stage < LANES; stage *= 2) {
        f32 y[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            y[2 * i] = zip_low(x[i], x[i + LANES / 2]);
            y[2 * i + 1] = zip_high(x[i], x[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) x[i] = y[i];
    }
}

static inline f32 fma(f32 a, f32 b, f32 c) {
#if LANES == 16
    return (f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// The compiler converts between widths one number at a time, so that is done by hand.
static inline f32 load_bf16(const uint16_t* p) {
#if LANES == 16
    u32 wide = (u32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif LANES == 8
    u32 wide = (u32)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    u32 wide;
    for (int i = 0; i < LANES; ++i) wide[i] = p[i];
#endif
    return (f32)(wide << 16);
}

static inline f32 to_floats(i32 x) { return __builtin_convertvector(x, f32); }

static inline void store_int8(int8_t* p, i32 x) {
#if LANES == 16
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)x));
#elif LANES == 8
    __m256i y = (__m256i)x;
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
#else
    for (int i = 0; i < LANES; ++i) p[i] = int8_t(x[i]);
#endif
}

// Round to nearest even; NaN keeps its sign and stays quiet.
static inline void store_bf16(uint16_t* p, f32 x) {
    u32 bits = (u32)x;
    u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32 nan = (bits >> 16) | 0x40;
    u32 half = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
#if LANES == 16
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)half));
#elif LANES == 8
    __m256i y = (__m256i)half;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
#else
    for (int i = 0; i < LANES; ++i) p[i] = uint16_t(half[i]);
#endif
}

static inline float sum(f32 x) {
    float total[LANES], *t = total;
    store(t, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) t[i] += t[i + half];
    return t[0];
}

static inline float largest(f32 x) {
    float t[LANES];
    store(t, x);
    float most = t[0];
    for (int i = 1; i < LANES; ++i) most = t[i] > most ? t[i] : most;
    return most;
}

// Sums in double precision, which rounded to a float do not depend on their order.
static inline f64 low_doubles(f32 x) {
#if LANES == 16
    return (f64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
#elif LANES == 8
    return (f64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
#else
    return f64{x[0], x[1]};
#endif
}

static inline f64 high_doubles(f32 x) {
#if LANES == 16
    return (f64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
#elif LANES == 8
    return (f64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
#else
    return f64{x[2], x[3]};
#endif
}

static inline double sum(f64 x) {
    double total = 0;
    for (int i = 0; i < LANES / 2; ++i) total += x[i];
    return total;
}

static inline f32 pick_max(f32 a, f32 b) { return a > b ? a : b; }
static inline f32 pick_min(f32 a, f32 b) { return a < b ? a : b; }

// Of less than 2^22: numbers that large keep no fractions.
static inline f32 nearest_even(f32 x) { return (x + 12582912.0f) - 12582912.0f; }

// e^x within two units in the last place for x <= 88.9: 0 below -87.7 and infinite above 88.4, for
// such powers of two have these bits. NaN stays NaN.
static inline f32 exponential_of_bounded(f32 x) {
    x = x < splat(-88.0f) ? splat(-88.0f) : x;
    const f32 shifted = fma(x, splat(1.44269504f), splat(12582912.0f));
    const f32 n = shifted - 12582912.0f;
    f32 r = fma(n, splat(-0.693145752f), x);
    r = fma(n, splat(-1.42860677e-6f), r);
    f32 p = fma(r, splat(1.38888889e-3f), splat(8.33333333e-3f));
    p = fma(p, r, splat(4.16666667e-2f));
    p = fma(p, r, splat(0.166666667f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return p * (f32)(((i32)shifted + 127) << 23);
}

// x * sigmoid(2 z), which is x * (1 + tanh(z)) / 2; where e^-2z is infinite the limit is -0.
static inline f32 gelu_tanh(f32 x) {
    const f32 z = x * fma(x * x, splat(-1.5957691216f * 0.044715f), splat(-1.5957691216f));
    return x / (1.0f + exponential_of_bounded(z > splat(88.9f) ? splat(88.9f) : z));
}

// At most LANES values, the rest of the vector zero.
static inline f32 load_some(const float* p, int64_t count) {
    if (count >= LANES) return load(p);
    float t[LANES] = {};
    for (int64_t i = 0; i < count; ++i) t[i] = p[i];
    return load(t);
}

static inline f32 load_any(const void* x, int dtype, int64_t at) {
    return dtype == kFloat32 ? load(static_cast<const float*>(x) + at)
                             : load_bf16(static_cast<const uint16_t*>(x) + at);
}

static inline float load_one(const void* x, int dtype, int64_t at) {
    if (dtype == kFloat32) return static_cast<const float*>(x)[at];
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(x)[at]) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

static inline f32 load_some_any(const void* x, int dtype, int64_t at, int64_t count) {
    if (count >= LANES) return load_any(x, dtype, at);
    float t[LANES] = {};
    for (int64_t i = 0; i < count; ++i) t[i] = load_one(x, dtype, at + i);
    return load(t);
}

static inline void store_some(void* out, int64_t at, int dtype, f32 x, int64_t count) {
    if (dtype == kFloat32) {
        float* p = static_cast<float*>(out) + at;
        if (count >= LANES) return store(p, x);
        for (int64_t i = 0; i < count; ++i) p[i] = x[i];
    } else {
        uint16_t* p = static_cast<uint16_t*>(out) + at;
        if (count >= LANES) return store_bf16(p, x);
        uint16_t half[LANES];
        store_bf16(half, x);
        for (int64_t i = 0; i < count; ++i) p[i] = half[i];
    }
}
