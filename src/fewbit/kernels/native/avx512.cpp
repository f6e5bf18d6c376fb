// AVX-512 with VNNI: 6 tokens by 64 channels of int32 stay in 24 registers.
#include <immintrin.h>

#include "tasks.h"

#define LANES 16
#define WIDEST 4
#define TILE_FLOATS 384

namespace fewbit {
namespace avx512 {

#include "vec.h"
#include "tile.h"
#include "rows.h"
#include "attention.h"

struct Opened {
    const uint8_t* bytes;
    int32_t offset;
};

static Opened open_panel(const Linear&, const Packed& w, int64_t panel, uint8_t* scratch);
static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc);

#include "linear.h"
#include "sums.h"

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

static Opened open_panel(const Linear&, const Packed& w, int64_t panel, uint8_t* scratch) {
    const Header& h = *w.header;
    if (h.bits == 8) return {w.panel(panel), h.offset};
    if (h.tables > 1) open_choices(w, panel, scratch);
    else open_one_table(w, panel, scratch);
    return {scratch, h.offset};
}

// As assembly, because the compiler's builtin copies its accumulators around.
static inline void multiply_add(__m512i& acc, __m512i bytes, __m512i codes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(bytes), "v"(codes));
}

template <int MR>
static inline void dot_tile(const int8_t* a, int64_t pitch, const uint8_t* w, int64_t depth,
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
    switch (rows) {
        case 6: return dot_tile<6>(a, pitch, w, depth, acc);
        case 5: return dot_tile<5>(a, pitch, w, depth, acc);
        case 4: return dot_tile<4>(a, pitch, w, depth, acc);
        case 3: return dot_tile<3>(a, pitch, w, depth, acc);
        case 2: return dot_tile<2>(a, pitch, w, depth, acc);
        default: return dot_tile<1>(a, pitch, w, depth, acc);
    }
}

// Sixteen channels: the float levels of their tables, and which of them uses which.
struct Levels {
    __m512 table[kTables];
    __mmask16 chosen[kTables];
    int tables, offset, bits;

    Levels(const Packed& w, int64_t panel, int64_t part)
        : tables(w.header->bits == 4 ? w.header->tables : 0), offset(w.header->offset),
          bits(w.header->bits) {
        for (int i = 0; i < tables; ++i) {
            __m512i bytes = _mm512_cvtepu8_epi32(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.header->table[i])));
            table[i] = _mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, _mm512_set1_epi32(offset)));
            chosen[i] = 0xffff;
            if (tables > 1) {
                __m512i choice = _mm512_cvtepu8_epi32(_mm_loadu_si128(
                    reinterpret_cast<const __m128i*>(w.panel_choices(panel) + part * 16)));
                chosen[i] = _mm512_cmpeq_epi32_mask(choice, _mm512_set1_epi32(i));
            }
        }
    }

    // Nibble `at` of each dword; a permutation looks at the low four bits alone.
    inline __m512 nibble(__m512i dwords, int at) const {
        __m512i code = _mm512_srli_epi32(dwords, 4 * at);
        __m512 x = _mm512_permutexvar_ps(code, table[0]);
        for (int i = 1; i < tables; ++i)
            x = _mm512_mask_permutexvar_ps(x, chosen[i], code, table[i]);
        return x;
    }

    inline __m512 byte(__m512i dwords, int at) const {
        __m512i x = _mm512_and_si512(_mm512_srli_epi32(dwords, 8 * at), _mm512_set1_epi32(255));
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(offset)));
    }
};

static void decode_codes(const Packed& w, int64_t panel, int64_t k0, int64_t depth, float* out) {
    const uint8_t* bytes = w.panel(panel);
    for (int64_t part = 0; part < 4; ++part) {
        Levels levels(w, panel, part);
        if (levels.bits == 8) {
            for (int64_t k = 0; k < depth; k += 4) {
                __m512i dwords = _mm512_loadu_si512(bytes + ((k0 + k) * kPanel + part * 64));
                for (int i = 0; i < 4; ++i)
                    _mm512_storeu_ps(out + (k + i) * kPanel + part * 16, levels.byte(dwords, i));
            }
            continue;
        }
        for (int64_t k = 0; k < depth; k += 8) {
            __m512i dwords = _mm512_loadu_si512(bytes + ((k0 + k) * kPanel / 2 + part * 64));
            for (int i = 0; i < 8; ++i)
                _mm512_storeu_ps(out + (k + i / 2 + i % 2 * 4) * kPanel + part * 16,
                                 levels.nibble(dwords, i));
        }
    }
}

template <int ROWS, int BITS, bool MANY>
static void gemv_part(const FloatLinear& t, const Packed& w, int64_t panel, int64_t row, int64_t k0,
                      int64_t depth, int64_t part, float* sums) {
    Levels levels(w, panel, part);
    if (!MANY) levels.tables = 1;
    const uint8_t* bytes = w.panel(panel) + k0 * kPanel * BITS / 8 + part * 64;
    const float* x = t.x + row * t.pitch + k0;
    __m512 even[ROWS], odd[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) even[i] = odd[i] = _mm512_setzero_ps();
    constexpr int STEP = 32 / BITS;
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; k += STEP) {
        const uint8_t* from = bytes + k * kPanel * BITS / 8;
        _mm_prefetch(reinterpret_cast<const char*>(from + 4096), _MM_HINT_T0);
        __m512i dwords = _mm512_loadu_si512(from);
#pragma GCC unroll 8
        for (int n = 0; n < STEP; ++n) {
            __m512 level = BITS == 4 ? levels.nibble(dwords, n) : levels.byte(dwords, n);
            int64_t at = k + (BITS == 4 ? n / 2 + n % 2 * 4 : n);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                __m512 value = _mm512_set1_ps(x[i * t.pitch + at]);
                __m512& acc = n % 2 ? odd[i] : even[i];
                acc = _mm512_fmadd_ps(value, level, acc);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
        _mm512_storeu_ps(sums + i * kPanel + part * 16, _mm512_add_ps(even[i], odd[i]));
}

template <int ROWS>
static void gemv_rows(const FloatLinear& t, const Packed& w, int64_t panel, int64_t row, int64_t k0,
                      int64_t depth, float* sums) {
    const Header& h = *w.header;
    for (int64_t part = 0; part < 4; ++part)
        if (h.bits == 8) gemv_part<ROWS, 8, false>(t, w, panel, row, k0, depth, part, sums);
        else if (h.tables > 1) gemv_part<ROWS, 4, true>(t, w, panel, row, k0, depth, part, sums);
        else gemv_part<ROWS, 4, false>(t, w, panel, row, k0, depth, part, sums);
}

static void gemv(const FloatLinear& t, const Packed& w, int64_t panel, int64_t row, int64_t rows,
                 int64_t k0, int64_t depth, float* sums) {
    switch (rows) {
        case 8: return gemv_rows<8>(t, w, panel, row, k0, depth, sums);
        case 7: return gemv_rows<7>(t, w, panel, row, k0, depth, sums);
        case 6: return gemv_rows<6>(t, w, panel, row, k0, depth, sums);
        case 5: return gemv_rows<5>(t, w, panel, row, k0, depth, sums);
        case 4: return gemv_rows<4>(t, w, panel, row, k0, depth, sums);
        case 3: return gemv_rows<3>(t, w, panel, row, k0, depth, sums);
        case 2: return gemv_rows<2>(t, w, panel, row, k0, depth, sums);
        default: return gemv_rows<1>(t, w, panel, row, k0, depth, sums);
    }
}

#include "float_linear.h"

}  // namespace avx512

const Kernels kAvx512 = {"avx512vnni", avx512::sums, avx512::linear_kernel, avx512::float_kernel,
                         avx512::row_kernel, avx512::gelu_kernel, avx512::attention<avx512::Fp32Attention>};

}  // namespace fewbit
