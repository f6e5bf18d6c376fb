// c = a * b or c += a * b in registers, for small matrices of floats: k runs in ascending order and
// starts from zero, which is what makes the rotation the same bits everywhere.
//
// A step is one dword of a row of `a`, broadcast, and one row of dwords of `b`: a float, or two
// bfloat16 of neighbouring k. P says how they are multiplied and added.

struct Fp32 {
    static inline f32 broadcast(const uint32_t& a) {
#if LANES == 16
        // As assembly, or the compiler loads it again for every product.
        f32 all;
        asm("vbroadcastss %1, %0" : "=v"(all) : "m"(a));
        return all;
#else
        float value;
        __builtin_memcpy(&value, &a, 4);
        return splat(value);
#endif
    }

    static inline void madd(f32& acc, f32 a, f32 b) { acc = fma(a, b, acc); }
};

template <class P, int MR, int NV>
static inline void tile(const uint32_t* a, int64_t lda, const float* b, int64_t ldb, int64_t steps,
                        float* c, int64_t ldc, bool add) {
    f32 acc[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = f32{};
#pragma GCC unroll 1
    for (int64_t s = 0; s < steps; ++s) {
        f32 row[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) row[j] = load(b + s * ldb + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            f32 all = P::broadcast(a[i * lda + s]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) P::madd(acc[i][j], all, row[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            float* to = c + i * ldc + j * LANES;
            store(to, add ? load(to) + acc[i][j] : acc[i][j]);
        }
}

template <class P, int NV>
static void columns(int64_t m, const uint32_t* a, int64_t lda, const float* b, int64_t ldb,
                    int64_t steps, float* c, int64_t ldc, bool add) {
    constexpr int MR = NV * 8 * LANES <= TILE_FLOATS ? 8 : NV * 6 * LANES <= TILE_FLOATS ? 6 : 4;
    int64_t i = 0;
    for (; i + MR <= m; i += MR) tile<P, MR, NV>(a + i * lda, lda, b, ldb, steps, c + i * ldc, ldc, add);
    for (; i + 4 <= m; i += 4) tile<P, 4, NV>(a + i * lda, lda, b, ldb, steps, c + i * ldc, ldc, add);
    for (; i + 2 <= m; i += 2) tile<P, 2, NV>(a + i * lda, lda, b, ldb, steps, c + i * ldc, ldc, add);
    if (i < m) tile<P, 1, NV>(a + i * lda, lda, b, ldb, steps, c + i * ldc, ldc, add);
}

// The row lengths of b and c are multiples of LANES.
template <class P>
static void multiply(int64_t m, int64_t n, int64_t steps, const void* a, int64_t lda, const void* b,
                     int64_t ldb, float* c, int64_t ldc, bool add) {
    const uint32_t* x = static_cast<const uint32_t*>(a);
    const float* y = static_cast<const float*>(b);
    int64_t vectors = n / LANES, j = 0;
    for (; j < vectors;) {
        const float* yj = y + j * LANES;
        float* cj = c + j * LANES;
        int64_t left = vectors - j;
        // 3 + 2 and 3 + 3 keep more chains busy than 4 + 1 and 4 + 2.
        int64_t take = left == 5 || left == 6 ? 3 : left >= WIDEST ? WIDEST : left;
        switch (take) {
#if WIDEST >= 4
            case 4: columns<P, 4>(m, x, lda, yj, ldb, steps, cj, ldc, add); break;
            case 3: columns<P, 3>(m, x, lda, yj, ldb, steps, cj, ldc, add); break;
#endif
            case 2: columns<P, 2>(m, x, lda, yj, ldb, steps, cj, ldc, add); break;
            default: columns<P, 1>(m, x, lda, yj, ldb, steps, cj, ldc, add); take = 1;
        }
        j += take;
    }
}
