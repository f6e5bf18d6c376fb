// The levels of a panel as floats, [k][64], one at a time: for where no shuffle does it faster.

static inline int level(const Packed& w, int64_t panel, int64_t k, int64_t channel) {
    const Header& h = *w.header;
    const uint8_t* bytes = w.panel(panel);
    if (h.bits == 8) return bytes[(k / 4 * kPanel + channel) * 4 + k % 4] - h.offset;
    int code = bytes[(k / 8 * kPanel + channel) * 4 + k % 4] >> k % 8 / 4 * 4 & 15;
    return h.table[h.tables > 1 ? w.panel_choices(panel)[channel] : 0][code] - h.offset;
}

static void decode_codes(const Packed& w, int64_t panel, int64_t k0, int64_t depth, float* out) {
    for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < kPanel; ++i) out[k * kPanel + i] = float(level(w, panel, k0 + k, i));
}

static void gemv(const FloatLinear& t, const Packed& w, int64_t panel, int64_t row, int64_t rows,
                 int64_t k0, int64_t depth, float* sums) {
    const float* x = static_cast<const float*>(t.x);
    for (int64_t i = 0; i < rows * kPanel; ++i) sums[i] = 0;
    for (int64_t k = k0; k < k0 + depth; ++k)
        for (int64_t j = 0; j < kPanel; ++j) {
            float weight = float(level(w, panel, k, j));
            for (int64_t i = 0; i < rows; ++i)
                sums[i * kPanel + j] += x[(row + i) * t.pitch + k] * weight;
        }
}
