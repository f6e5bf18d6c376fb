// Floats times a weight that rests as codes or as vectors of a codebook: at most 256 of k are
// decoded at a time for 64 channels and forgotten, so that nothing larger is ever held.

static void decode_vectors(const FloatLinear& t, int64_t panel, int64_t k0, int64_t depth, float* out) {
    int64_t per_row = t.k / t.d;
    for (int64_t i = 0; i < kPanel; ++i) {
        int64_t channel = panel * kPanel + i;
        const uint8_t* row = t.assignments + channel * per_row + k0 / t.d;
        for (int64_t v = 0; v < depth / t.d; ++v)
            for (int64_t e = 0; e < t.d; ++e)
                out[(v * t.d + e) * kPanel + i] = channel < t.n ? t.codebook[row[v] * t.d + e] : 0;
    }
}

// sums [rows][64] of `depth` of k from k0.
static void multiply_decoded(const FloatLinear& t, const Packed* w, int64_t panel, int64_t row,
                             int64_t rows, int64_t k0, int64_t depth, float* sums, float* decoded) {
    int64_t step = w ? kFloatDepth : kFloatDepth / t.d * t.d;
    for (int64_t k = 0; k < depth; k += step) {
        int64_t now = depth - k < step ? depth - k : step;
        if (w) decode_codes(*w, panel, k0 + k, now, decoded);
        else decode_vectors(t, panel, k0 + k, now, decoded);
        multiply<Fp32>(rows, kPanel, now, t.x + row * t.pitch + k0 + k, t.pitch, decoded, kPanel,
                       sums, kPanel, k > 0);
    }
}

static void float_kernel(const FloatLinear& t, const Packed* w, int64_t panel, int64_t row,
                         int64_t rows, float* scratch) {
    float* factors = scratch;  // [groups + 1][64]
    float* sums = factors + (t.groups + 1) * kPanel;
    float* part = sums + rows * kPanel;
    float* decoded = part + rows * kPanel;
    panel_factors(t.weight_scales, t.bias, t.n, t.groups, panel, factors);
    for (int64_t i = 0; i < rows * kPanel; ++i) sums[i] = 0;
    int64_t group = (w ? up(t.k, kDepth) : t.k) / t.groups;
    for (int64_t g = 0; g < t.groups; ++g) {
        if (w && rows <= kFewRows)
            gemv(t, *w, panel, row, rows, g * group, group, part);
        else
            multiply_decoded(t, w, panel, row, rows, g * group, group, part, decoded);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < kPanel; j += LANES) {
                float* to = sums + i * kPanel + j;
                store(to, load(to) + load(part + i * kPanel + j) * load(factors + g * kPanel + j));
            }
    }
    const float* bias = factors + t.groups * kPanel;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < kPanel && panel * kPanel + j < t.n; j += LANES) {
            int64_t channel = panel * kPanel + j;
            f32 y = load(sums + i * kPanel + j) + load(bias + j);
            store_some(t.out, (row + i) * t.n + channel, t.out_dtype, y, t.n - channel);
        }
}
