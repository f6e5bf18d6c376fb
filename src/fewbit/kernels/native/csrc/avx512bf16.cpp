// Attention, and products with decoded weights, of bfloat16 with float32 sums: by the dot products
// of AVX512-BF16.
#include <immintrin.h>

#include "kernels.h"

#define LANES 16
#define WIDEST 4
#define TILE_FLOATS 384

namespace fewbit {
namespace avx512bf16 {

#include "vec.inc"
#include "tile.inc"
#include "round.inc"
#include "attention.inc"
#include "avx512_levels.inc"
#include "panel_factors.inc"
#include "float_linear.inc"

struct Bf16Product {
    static inline f32 broadcast(uint32_t a) { return (f32)_mm512_set1_epi32(int32_t(a)); }

    static inline void madd(f32& acc, f32 a, f32 b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(a));
    }
};

struct Bf16Attention {
    using Product = Bf16Product;
    using Element = uint16_t;
    static constexpr int kPair = 2;

    static inline void pair(uint32_t* to, const uint16_t* a, const uint16_t* b, int64_t d) {
        for (int64_t i = 0; i < d; ++i) to[i] = a[i] | uint32_t(b ? b[i] : 0) << 16;
    }
    static inline f32 exponential(f32 x) { return coarse_power_of_two(x * 1.44269504f); }
    static inline void put(uint16_t* to, float x) {
        uint16_t t[LANES]; store_bf16(t, splat(x)); *to = t[0]; }
    static inline void put_vector(uint16_t* to, f32 x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)x));
    }
};

// Levels of 8 bits lose nothing by it: their lower halves are zeros.
struct Halves {
    using Product = Bf16Product;
    static constexpr int kPair = 2;

    static inline void pack(float* decoded, int64_t depth) {
        const __m512i upper = _mm512_set1_epi32(int(0xffff0000u));
        for (int64_t k = 0; k < depth; k += 2)
            for (int64_t j = 0; j < kPanel; j += LANES) {
                __m512i even = _mm512_loadu_si512(decoded + k * kPanel + j);
                __m512i odd = _mm512_loadu_si512(decoded + (k + 1) * kPanel + j);
                __m512i both = _mm512_or_si512(_mm512_srli_epi32(even, 16),
                                               _mm512_and_si512(odd, upper));
                _mm512_storeu_si512(decoded + k / 2 * kPanel + j, both);
            }
    }
};

}  // namespace avx512bf16

void float_linear_avx512bf16(const FloatLinear& t, const Packed* w, int64_t panel, int64_t row,
                             int64_t rows, float* scratch) {
    avx512bf16::float_kernel<avx512bf16::Halves>(t, w, panel, row, rows, scratch);
}

void attention_avx512bf16(const AttentionTask& t, int64_t head, uint8_t* scratch) {
    avx512bf16::attention<avx512bf16::Bf16Attention>(t, head, scratch);
}

}  // namespace fewbit
