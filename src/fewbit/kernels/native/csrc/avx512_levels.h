// The levels of a panel as floats, [k][64], by shuffles; and few rows times codes where they rest.

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
    const float* x = static_cast<const float*>(t.x) + row * t.pitch + k0;
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
