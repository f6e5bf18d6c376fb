// AVX2. Where a pair of products is small, as in FP4 times FP4, vpmaddubsw never saturates and
// int16 holds many steps before it is widened; other integers are widened first.
#include <immintrin.h>

#include "kernels.h"

#define LANES 8
#define WIDEST 2
#define TILE_FLOATS 96

namespace fewbit {
namespace avx2 {

#include "vec.inc"
#include "tile.inc"
#include "round.inc"
#include "rows.inc"
#include "attention.inc"

struct Opened {
    uint8_t* bytes;     // narrow: [strip][k / 4][16][4]; wide: int16 [strip][k / 2][16][2]
    int16_t* widened;   // wide: six rows of codes
    int32_t* starts;    // six rows of what int16 sums of a span start from, or null: they do not fit
    int64_t k, steps;   // steps: of 4 k that fit int16, 0 if wide
    int32_t offset;
};

static Opened open_panel(const Linear& t, const Packed& w, int64_t panel, uint8_t* scratch);
static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc);

#include "factors.inc"
#include "linear.inc"
#include "spans.inc"
#include "sums.inc"

static constexpr int64_t kStrip = 16;
static constexpr int64_t kWorthIt = 4;  // steps that pay for adding int16 sums to those of int32

static inline __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

static inline void store256(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// The table of each channel is chosen by a mask of its four bytes.
static void open_nibbles(const Packed& w, int64_t panel, uint8_t* out) {
    const Header& h = *w.header;
    const uint8_t* packed = w.panel(panel);
    const __m256i low = _mm256_set1_epi8(15);
    int64_t groups = up(h.k, kDepth) / kDepth;
    for (int64_t part = 0; part < 8; ++part) {
        __m256i table[kTables], mask[kTables];
        for (int i = 0; i < h.tables; ++i) {
            table[i] = _mm256_broadcastsi128_si256(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(h.table[i])));
            mask[i] = _mm256_setzero_si256();
            if (h.tables > 1) {
                __m256i choice = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
                    reinterpret_cast<const __m128i*>(w.panel_choices(panel) + part * 8)));
                mask[i] = _mm256_cmpeq_epi32(choice, _mm256_set1_epi32(i));
            }
        }
        uint8_t* strip = out + part / 2 * groups * 2 * 4 * kStrip + part % 2 * 32;
        for (int64_t group = 0; group < groups; ++group) {
            __m256i bytes = load256(packed + group * 256 + part * 32);
            __m256i first = _mm256_and_si256(bytes, low);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
            __m256i a = _mm256_shuffle_epi8(table[0], first);
            __m256i b = _mm256_shuffle_epi8(table[0], second);
            for (int i = 1; i < h.tables; ++i) {
                a = _mm256_blendv_epi8(a, _mm256_shuffle_epi8(table[i], first), mask[i]);
                b = _mm256_blendv_epi8(b, _mm256_shuffle_epi8(table[i], second), mask[i]);
            }
            store256(strip + group * 2 * 4 * kStrip, a);
            store256(strip + (group * 2 + 1) * 4 * kStrip, b);
        }
    }
}

// Bytes times a factor of each dword, plus another byte, modulo 256.
static inline __m256i times(__m256i bytes, __m256i factors, __m256i added) {
    const __m256i even = _mm256_mullo_epi16(bytes, factors);
    const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(bytes, 8), factors);
    const __m256i low = _mm256_and_si256(even, _mm256_set1_epi16(255));
    return _mm256_add_epi8(_mm256_or_si256(low, _mm256_slli_epi16(odd, 8)), added);
}

static inline __m256i dwords(const uint8_t* bytes, int32_t copies) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(eight), _mm256_set1_epi32(copies));
}

// Of a panel in strips.
static void multiply_factors(const Linear& t, const Packed& w, int64_t panel, uint8_t* bytes) {
    const int64_t k = w.header->k, quads = k / t.factor_groups / 4;
    for (int64_t group = 0; group < t.factor_groups; ++group) {
        const Factors f(t, w, panel, group);
        for (int64_t part = 0; part < kPanel; part += 8) {
            const __m256i factors = dwords(f.factor + part, 0x00010001);
            const __m256i added = dwords(f.added + part, 0x01010101);
            uint8_t* to = bytes + (part / kStrip * k + group * quads * 4) * kStrip + part % kStrip * 4;
            for (int64_t quad = 0; quad < quads; ++quad, to += 4 * kStrip)
                store256(to, times(load256(to), factors, added));
        }
    }
}

static void open_bytes(const Packed& w, int64_t panel, uint8_t* out) {
    int64_t quads = up(w.header->k, kDepth) / 4;
    for (int64_t quad = 0; quad < quads; ++quad)
        for (int64_t strip = 0; strip < 4; ++strip)
            __builtin_memcpy(out + (strip * quads + quad) * 64,
                             w.panel(panel) + quad * 256 + strip * 64, 64);
}

static void open_vectors(const Packed& w, int64_t panel, uint8_t* out) {
    const int64_t quads = up(w.header->k, kDepth) / 4;
    const uint8_t* packed = w.panel(panel);
    for (int64_t quad = 0; quad < quads; ++quad)
        for (int64_t i = 0; i < kPanel; ++i) {
            uint8_t* to = out + (i / kStrip * quads + quad) * 4 * kStrip + i % kStrip * 4;
            __builtin_memcpy(to, w.vectors() + 4 * packed[quad * kPanel + i], 4);
        }
}

// Bytes [quad][16][4] to int16 [pair][16][2], signed.
static void widen(const uint8_t* bytes, int64_t quads, int32_t offset, int16_t* out) {
    for (int64_t quad = 0; quad < quads; ++quad)
        for (int64_t channel = 0; channel < kStrip; ++channel)
            for (int64_t i = 0; i < 4; ++i)
                out[(quad * 2 + i / 2) * 2 * kStrip + channel * 2 + i % 2] =
                    int16_t(bytes[(quad * kStrip + channel) * 4 + i] - offset);
}

// Whether a whole span, and half of what the offset adds to it, fits int16.
static bool fits_narrow(const Linear& t, int64_t top, int64_t offset) {
    const int64_t pairs = t.pitch / t.spans / 2;
    return t.spans > 1 && pairs * *t.largest * (top + offset) <= 32767;
}

static Opened open_panel(const Linear& t, const Packed& w, int64_t panel, uint8_t* scratch) {
    const Header& h = *w.header;
    int64_t k = up(h.k, kDepth);
    int64_t pair = 2 * int64_t(opened_top(t, w)) * *t.largest;
    int64_t steps = pair ? 32767 / pair : k;
    Opened opened = {scratch, nullptr, nullptr, k, steps < kWorthIt ? 0 : steps, opened_offset(t, w)};
    if (fits_narrow(t, opened_top(t, w), opened.offset)) {
        opened.steps = k;
        opened.starts = reinterpret_cast<int32_t*>(scratch + k * kPanel);
    }
    if (h.bits == 2) open_vectors(w, panel, scratch);
    else if (h.bits == 4) open_nibbles(w, panel, scratch);
    else open_bytes(w, panel, scratch);
    if (t.factors) multiply_factors(t, w, panel, scratch);
    if (opened.steps) return opened;
    int16_t* wide = reinterpret_cast<int16_t*>(scratch + k * kPanel);
    for (int64_t strip = 0; strip < 4; ++strip)
        widen(scratch + strip * k * kStrip, k / 4, opened.offset, wide + strip * k * kStrip);
    opened.bytes = reinterpret_cast<uint8_t*>(wide);
    opened.widened = wide + k * kPanel;
    return opened;
}

// As assembly, because the compiler makes all products first and has no registers left for sums.
static inline void multiply_add(__m256i& acc, __m256i bytes, __m256i codes) {
    __m256i product;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
        : "+x"(acc), "=&x"(product)
        : "x"(bytes), "x"(codes));
}

template <int MR>
static inline void narrow_tile(const int8_t* a, int64_t pitch, const uint8_t* w, int64_t depth,
                               int64_t steps, int32_t* out) {
    for (int64_t k = 0; k < depth;) {
        int64_t end = k + 4 * steps < depth ? k + 4 * steps : depth;
        __m256i acc[MR][2];
#pragma GCC unroll 6
        for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
        for (; k < end; k += 4) {
            __m256i left = load256(w + k * kStrip), right = load256(w + k * kStrip + 32);
#pragma GCC unroll 6
            for (int i = 0; i < MR; ++i) {
                int32_t four;
                __builtin_memcpy(&four, a + i * pitch + k, 4);
                __m256i codes = _mm256_set1_epi32(four);
                multiply_add(acc[i][0], left, codes);
                multiply_add(acc[i][1], right, codes);
            }
        }
        // Made here each time: held over the loop it would push a sum out of its register.
        __m256i ones;
        asm volatile("vpcmpeqw %0, %0, %0\n\tvpsrlw $15, %0, %0" : "=x"(ones));
#pragma GCC unroll 6
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                int32_t* to = out + i * kPanel + j * 8;
                store256(to, _mm256_add_epi32(load256(to), _mm256_madd_epi16(acc[i][j], ones)));
            }
    }
}

// Sums of one span start at what the offset adds too much, half of it in either int16 of a channel.
static void find_starts(const Linear& t, int32_t offset, int64_t row, int64_t rows, int32_t* starts) {
    const int32_t* sums = t.sums + row * t.spans;
    for (int64_t at = 0; at < rows * t.spans; ++at) {
        const int32_t excess = -offset * sums[at], half = excess >> 1;
        starts[at] = int32_t(uint32_t(half) << 16 | (uint32_t(excess - half) & 0xffff));
    }
}

// Three rows, so that their float sums stay in registers beside those of a span.
static constexpr int64_t kSpanRows = 3;

template <int MR, bool GROUPED>
static inline void strip_spans(const Linear& t, const int8_t* a, const uint8_t* w, const int32_t* starts,
                               const float* scales, const float* factors, float* out) {
    const int64_t pitch = t.pitch, spans = t.spans, depth = pitch / spans;
    f32 total[MR][2] = {};
#pragma GCC unroll 1
    for (int64_t g = 0; g < spans; ++g, a += depth, w += depth * kStrip) {
        __m256i acc[MR][2];
#pragma GCC unroll 3
        for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = _mm256_set1_epi32(starts[i * spans + g]);
#pragma GCC unroll 1
        for (int64_t k = 0; k < depth; k += 8) {
#pragma GCC unroll 2
            for (int64_t at = k; at < k + 8; at += 4) {
                __m256i left = load256(w + at * kStrip), right = load256(w + at * kStrip + 32);
#pragma GCC unroll 3
                for (int i = 0; i < MR; ++i) {
                    int32_t four;
                    __builtin_memcpy(&four, a + i * pitch + at, 4);
                    __m256i codes = _mm256_set1_epi32(four);
                    multiply_add(acc[i][0], left, codes);
                    multiply_add(acc[i][1], right, codes);
                }
            }
        }
        __m256i ones;
        asm volatile("vpcmpeqw %0, %0, %0\n\tvpsrlw $15, %0, %0" : "=x"(ones));
#pragma GCC unroll 3
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                f32 value = to_floats((i32)_mm256_madd_epi16(acc[i][j], ones));
                if (GROUPED) value *= splat(scales[i * spans + g]);
                total[i][j] += value * load(factors + g * kPanel + j * 8);
            }
    }
#pragma GCC unroll 3
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) store(out + i * kPanel + j * 8, total[i][j]);
}

template <int MR, bool GROUPED>
static OWN_REGISTERS void narrow_spans(const Linear& t, const Opened& w, int64_t row,
                                       const int32_t* starts, const float* factors, float* sums) {
    for (int64_t strip = 0; strip < kPanel; strip += kStrip)
        strip_spans<MR, GROUPED>(t, t.codes + row * t.pitch, w.bytes + strip * w.k, starts,
                                 t.scales + row * t.scale_groups, factors + strip, sums + strip);
}

static void sum_spans(const Linear& t, const Opened& w, int64_t row, int64_t rows, int32_t* acc,
                      const float* factors, float* sums) {
    if (!w.starts) return dot_spans(t, w, row, rows, acc, factors, sums);
    find_starts(t, w.offset, row, rows, w.starts);
    for (int64_t i = 0; i < rows; i += kSpanRows)
        with_rows<kSpanRows>(rows - i < kSpanRows ? rows - i : kSpanRows, [&](auto count) {
            auto kernel = t.scale_groups > 1 ? narrow_spans<decltype(count)::value, true>
                                             : narrow_spans<decltype(count)::value, false>;
            kernel(t, w, row + i, w.starts + i * t.spans, factors, sums + i * kPanel);
        });
}

template <int MR>
static inline void wide_tile(const int16_t* a, int64_t pitch, const int16_t* w, int64_t depth,
                             int32_t* out) {
    __m256i acc[MR][2];
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; k += 2) {
        __m256i left = load256(w + k * kStrip), right = load256(w + k * kStrip + 16);
#pragma GCC unroll 6
        for (int i = 0; i < MR; ++i) {
            int32_t two;
            __builtin_memcpy(&two, a + i * pitch + k, 4);
            __m256i codes = _mm256_set1_epi32(two);
            acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(left, codes));
            acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(right, codes));
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
        store256(out + i * kPanel, acc[i][0]);
        store256(out + i * kPanel + 8, acc[i][1]);
    }
}

template <int MR>
static OWN_REGISTERS void dot_rows(const int8_t* a, int64_t pitch, const Opened& w, int64_t k0,
                                   int64_t depth, int32_t* acc) {
    if (w.steps) {
        for (int64_t i = 0; i < MR * kPanel; ++i) acc[i] = 0;
        for (int64_t strip = 0; strip < 4; ++strip)
            narrow_tile<MR>(a, pitch, w.bytes + (strip * w.k + k0) * kStrip, depth, w.steps,
                            acc + strip * kStrip);
        return;
    }
    for (int64_t i = 0; i < MR; ++i)
        for (int64_t k = 0; k < depth; ++k) w.widened[i * depth + k] = a[i * pitch + k];
    const int16_t* wide = reinterpret_cast<const int16_t*>(w.bytes);
    for (int64_t strip = 0; strip < 4; ++strip)
        wide_tile<MR>(w.widened, depth, wide + (strip * w.k + k0) * kStrip, depth,
                      acc + strip * kStrip);
    // The offset is taken off the weights already; add_group takes it off once more.
    for (int64_t i = 0; i < MR; ++i) {
        int32_t total = 0;
        for (int64_t k = 0; k < depth; ++k) total += w.widened[i * depth + k];
        for (int64_t j = 0; j < kPanel; ++j) acc[i * kPanel + j] += w.offset * total;
    }
}

static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc) {
    with_rows<kMaxRows>(rows, [&](auto count) {
        dot_rows<decltype(count)::value>(a, pitch, w, k0, depth, acc);
    });
}

// Eight channels: the float levels of their tables, in halves of eight, and who uses which.
struct Levels {
    static constexpr int kChains = 1;
    __m256 low[kTables], high[kTables], chosen[kTables];
    int tables;
    __m256i offset;

    Levels(const Packed& w, int64_t panel, int64_t part)
        : tables(w.header->bits == 4 ? w.header->tables : 0),
          offset(_mm256_set1_epi32(w.header->offset)) {
        for (int i = 0; i < tables; ++i) {
            low[i] = floats(w.header->table[i]);
            high[i] = floats(w.header->table[i] + 8);
            if (tables > 1)
                chosen[i] = _mm256_castsi256_ps(_mm256_cmpeq_epi32(
                    eight(w.panel_choices(panel) + part * 8), _mm256_set1_epi32(i)));
        }
    }

    static __m256i eight(const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }

    __m256 floats(const uint8_t* p) const {
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(eight(p), offset));
    }

    template <int BITS>
    inline f32 level(i32 dwords, int n) const {
        __m256i code = _mm256_srli_epi32((__m256i)dwords, BITS * n);
        if (BITS == 8) {
            code = _mm256_and_si256(code, _mm256_set1_epi32(255));
            return (f32)_mm256_cvtepi32_ps(_mm256_sub_epi32(code, offset));
        }
        __m256 top_bit = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
        __m256 x = look_up(0, code, top_bit);
        for (int i = 1; i < tables; ++i) x = _mm256_blendv_ps(x, look_up(i, code, top_bit), chosen[i]);
        return (f32)x;
    }

    inline __m256 look_up(int i, __m256i code, __m256 top_bit) const {
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low[i], code),
                                _mm256_permutevar8x32_ps(high[i], code), top_bit);
    }
};

#include "levels.inc"
#include "float_linear.inc"

}  // namespace avx2

const Kernels kAvx2 = {"avx2",
                       avx2::sums,
                       avx2::linear_kernel<avx2::sum_spans>,
                       {avx2::float_kernel<avx2::Floats>, nullptr},
                       avx2::row_kernel,
                       avx2::gelu_kernel,
                       {avx2::attention<avx2::Fp32Attention>, nullptr}};

}  // namespace fewbit
