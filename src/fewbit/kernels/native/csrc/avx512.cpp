// AVX-512 with VNNI: 6 tokens by 64 channels of int32 stay in 24 registers.
#include <immintrin.h>

#include "kernels.h"

#define LANES 16
#define WIDEST 4
#define TILE_FLOATS 384

namespace fewbit {
namespace avx512 {

#include "vec.inc"
#include "tile.inc"
#include "round.inc"
#include "rows.inc"
#include "attention.inc"

struct Opened {
    const uint8_t* bytes;
    int32_t offset;
};

static Opened open_panel(const Linear&, const Packed& w, int64_t panel, uint8_t* scratch);
static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc);

#include "factors.inc"
#include "linear.inc"

namespace one_by_one {
#include "sums.inc"
}

// Of 64 codes, in sixteen sums of four.
static inline __m512i sums_of_fours(__m512i codes) {
    __m512i sums = _mm512_setzero_si512();
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(_mm512_set1_epi8(1)), "v"(codes));
    return sums;
}

// Whole vectors of a part, or quarters of them. Nobody here asks for the largest.
static void sums(const int8_t* codes, int64_t spans, int64_t depth, int32_t* out, int32_t* largest) {
    if (depth % 16 || (depth > 64 && depth % 64))
        return one_by_one::sums(codes, spans, depth, out, largest);
    if (depth % 64 == 0) {
        for (int64_t span = 0; span < spans; ++span, codes += depth) {
            __m512i total = _mm512_setzero_si512();
            for (int64_t i = 0; i < depth; i += 64)
                total = _mm512_add_epi32(total, sums_of_fours(_mm512_loadu_si512(codes + i)));
            out[span] = _mm512_reduce_add_epi32(total);
        }
        return;
    }
    const int64_t size = spans * depth, quarters = depth / 16;
    std::memset(out, 0, spans * sizeof(int32_t));
    for (int64_t at = 0; at < size; at += 64) {
        const int64_t left = size - at < 64 ? size - at : 64;
        const __mmask64 there = left == 64 ? ~0ull : (1ull << left) - 1;
        __m512i sums = sums_of_fours(_mm512_maskz_loadu_epi8(there, codes + at));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
        int32_t quarter[4];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(quarter),
                         _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, sums)));
        for (int64_t i = 0; i < left / 16; ++i) out[(at / 16 + i) / quarters] += quarter[i];
    }
}


// The table of each channel is chosen by a mask of its four bytes.
static void open_choices(const Packed& w, int64_t panel, uint8_t* out) {
    const Header& h = *w.header;
    const uint8_t* packed = w.panel(panel);
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t part = 0; part < 4; ++part) {
        __m128i choice = _mm_loadu_si128(
            reinterpret_cast<const __m128i*>(w.panel_choices(panel) + part * 16));
        __m512i by_channel = _mm512_cvtepu8_epi32(choice);
        __m512i table[kTables];
        __mmask64 mask[kTables];
        for (int i = 0; i < h.tables; ++i) {
            table[i] = _mm512_broadcast_i32x4(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(h.table[i])));
            __mmask16 chosen = _mm512_cmpeq_epi32_mask(by_channel, _mm512_set1_epi32(i));
            mask[i] = _mm512_movepi8_mask(_mm512_movm_epi32(chosen));
        }
        for (int64_t group = 0; group < up(h.k, kDepth) / kDepth; ++group) {
            __m512i bytes = _mm512_loadu_si512(packed + group * 256 + part * 64);
            __m512i first = _mm512_and_si512(bytes, low);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
            __m512i a = _mm512_shuffle_epi8(table[0], first);
            __m512i b = _mm512_shuffle_epi8(table[0], second);
            for (int i = 1; i < h.tables; ++i) {
                a = _mm512_mask_shuffle_epi8(a, mask[i], table[i], first);
                b = _mm512_mask_shuffle_epi8(b, mask[i], table[i], second);
            }
            _mm512_storeu_si512(out + group * 512 + part * 64, a);
            _mm512_storeu_si512(out + group * 512 + 256 + part * 64, b);
        }
    }
}

static void open_one_table(const Packed& w, int64_t panel, uint8_t* out) {
    const uint8_t* packed = w.panel(panel);
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.header->table[0])));
    for (int64_t group = 0; group < up(w.header->k, kDepth) / kDepth; ++group)
        for (int64_t part = 0; part < 4; ++part) {
            __m512i bytes = _mm512_loadu_si512(packed + group * 256 + part * 64);
            __m512i first = _mm512_and_si512(bytes, low);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
            _mm512_storeu_si512(out + group * 512 + part * 64, _mm512_shuffle_epi8(table, first));
            _mm512_storeu_si512(out + group * 512 + 256 + part * 64,
                                _mm512_shuffle_epi8(table, second));
        }
}

static void open_vectors(const Packed& w, int64_t panel, uint8_t* out) {
    const uint8_t* packed = w.panel(panel);
    for (int64_t i = 0; i < up(w.header->k, kDepth) / 4 * kPanel; i += 16) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i));
        const __m512i found = _mm512_i32gather_epi32(_mm512_cvtepu8_epi32(sixteen), w.vectors(), 4);
        _mm512_storeu_si512(out + 4 * i, found);
    }
}

// Bytes times a factor of each dword, plus another byte, modulo 256.
static inline __m512i times(__m512i bytes, __m512i factors, __m512i added) {
    const __m512i even = _mm512_mullo_epi16(bytes, factors);
    const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(bytes, 8), factors);
    const __m512i low = _mm512_and_si512(even, _mm512_set1_epi16(255));
    return _mm512_add_epi8(_mm512_or_si512(low, _mm512_slli_epi16(odd, 8)), added);
}

static inline __m512i dwords(const uint8_t* bytes, int32_t copies) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(sixteen), _mm512_set1_epi32(copies));
}

static void multiply_factors(const Linear& t, const Packed& w, int64_t panel, uint8_t* bytes) {
    const int64_t quads = w.header->k / t.factor_groups / 4;
    for (int64_t group = 0; group < t.factor_groups; ++group) {
        const Factors f(t, w, panel, group);
        for (int64_t part = 0; part < kPanel; part += 16) {
            const __m512i factors = dwords(f.factor + part, 0x00010001);
            const __m512i added = dwords(f.added + part, 0x01010101);
            uint8_t* to = bytes + group * quads * 4 * kPanel + part * 4;
            for (int64_t quad = 0; quad < quads; ++quad, to += 4 * kPanel)
                _mm512_storeu_si512(to, times(_mm512_loadu_si512(to), factors, added));
        }
    }
}

static Opened open_panel(const Linear& t, const Packed& w, int64_t panel, uint8_t* scratch) {
    const Header& h = *w.header;
    if (h.bits == 8) return {w.panel(panel), h.offset};
    if (h.bits == 2) open_vectors(w, panel, scratch);
    else if (h.tables > 1) open_choices(w, panel, scratch);
    else open_one_table(w, panel, scratch);
    if (t.factors) multiply_factors(t, w, panel, scratch);
    return {scratch, opened_offset(t, w)};
}

// As assembly, because the compiler's builtin copies its accumulators around.
static inline void multiply_add(__m512i& acc, __m512i bytes, __m512i codes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(bytes), "v"(codes));
}

template <int MR>
static OWN_REGISTERS void dot_tile(const int8_t* a, int64_t pitch, const uint8_t* w, int64_t depth,
                                   int32_t* out) {
    __m512i acc[MR][4];
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_setzero_si512();
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; k += 8) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const uint8_t* from = w + (k + 4 * half) * kPanel;
            __m512i row[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) row[j] = _mm512_loadu_si512(from + 64 * j);
#pragma GCC unroll 6
            for (int i = 0; i < MR; ++i) {
                int32_t four;
                __builtin_memcpy(&four, a + i * pitch + k + 4 * half, 4);
                __m512i codes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) multiply_add(acc[i][j], row[j], codes);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + i * kPanel + j * 16, acc[i][j]);
}

static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened opened, int64_t k0,
                int64_t depth, int32_t* acc) {
    const uint8_t* w = opened.bytes + k0 * kPanel;
    with_rows<kMaxRows>(rows, [&](auto count) {
        dot_tile<decltype(count)::value>(a, pitch, w, depth, acc);
    });
}

// Three rows, so that their float sums stay in registers beside those of a span.
static constexpr int64_t kSpanRows = 3;

// Sums of a span start at what the offset adds too much.
template <int MR, bool GROUPED>
static OWN_REGISTERS void spans_tile(const Linear& t, const Opened& opened, int64_t row,
                                     const float* factors, float* sums) {
    const int64_t pitch = t.pitch, spans = t.spans, depth = pitch / spans;
    const int8_t* a = t.codes + row * pitch;
    const uint8_t* w = opened.bytes;
    const int32_t* of_codes = t.sums + row * spans;
    const float* scales = t.scales + row * t.scale_groups;
    f32 total[MR][4] = {};
#pragma GCC unroll 1
    for (int64_t g = 0; g < spans; ++g, a += depth, w += depth * kPanel) {
        __m512i acc[MR][4];
#pragma GCC unroll 3
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
                acc[i][j] = _mm512_set1_epi32(-opened.offset * of_codes[i * spans + g]);
#pragma GCC unroll 1
        for (int64_t k = 0; k < depth; k += 4) {
            __m512i row_of_w[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                row_of_w[j] = _mm512_loadu_si512(w + k * kPanel + 64 * j);
                asm("" : "+v"(row_of_w[j]));  // or it is loaded again for every product
            }
#pragma GCC unroll 3
            for (int i = 0; i < MR; ++i) {
                int32_t four;
                __builtin_memcpy(&four, a + i * pitch + k, 4);
                __m512i codes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) multiply_add(acc[i][j], row_of_w[j], codes);
            }
        }
#pragma GCC unroll 3
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                f32 value = to_floats((i32)acc[i][j]);
                if (GROUPED) value *= splat(scales[i * spans + g]);
                total[i][j] += value * load(factors + g * kPanel + j * LANES);
            }
    }
#pragma GCC unroll 3
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(sums + i * kPanel + j * LANES, total[i][j]);
}

static void sum_spans(const Linear& t, const Opened& w, int64_t row, int64_t rows, int32_t*,
                      const float* factors, float* sums) {
    for (int64_t i = 0; i < rows; i += kSpanRows)
        with_rows<kSpanRows>(rows - i < kSpanRows ? rows - i : kSpanRows, [&](auto count) {
            auto kernel = t.scale_groups > 1 ? spans_tile<decltype(count)::value, true>
                                             : spans_tile<decltype(count)::value, false>;
            kernel(t, w, row + i, factors, sums + i * kPanel);
        });
}

#include "avx512_levels.inc"
#include "float_linear.inc"

}  // namespace avx512

const Kernels kAvx512 = {"avx512vnni",
                         avx512::sums,
                         avx512::linear_kernel<avx512::sum_spans>,
                         {avx512::float_kernel<avx512::Floats>, nullptr},
                         avx512::row_kernel,
                         avx512::gelu_kernel,
                         {avx512::attention<avx512::Fp32Attention>, nullptr}};

}  // namespace fewbit
