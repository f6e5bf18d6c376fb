// Floats times a weight that rests as codes or as vectors of a codebook: at most 256 of k are
// decoded at a time for 64 channels and forgotten, so that nothing larger is ever held.

// A vector is so many dwords, of one or two elements each.
static void decode_vectors(const FloatLinear& t, int64_t dwords, int64_t panel, int64_t first,
                           int64_t count, uint32_t* out) {
    const uint32_t* codebook = static_cast<const uint32_t*>(t.codebook);
    int64_t per_row = t.k / t.d, there = t.n - panel * kPanel < kPanel ? t.n - panel * kPanel : kPanel;
    const uint8_t* assignments = t.assignments + panel * kPanel * per_row + first;
    for (int64_t v = 0; v < count; ++v, out += dwords * kPanel)
        for (int64_t i = 0; i < kPanel; ++i) {
            const uint32_t* entry = codebook + (i < there ? assignments[i * per_row + v] * dwords : 0);
            for (int64_t e = 0; e < dwords; ++e) out[e * kPanel + i] = entry[e];
        }
}

struct Floats {  // how inputs come, and weights are laid out for them
    using Product = Fp32;
    static constexpr int kPair = 1;  // elements in a dword
    static inline void pack(float*, int64_t) {}
};

// sums [rows][64] of `depth` of k from k0.
template <class P>
static void multiply_decoded(const FloatLinear& t, const Packed* w, int64_t panel, int64_t row,
                             int64_t rows, int64_t k0, int64_t depth, float* sums, float* decoded) {
    int64_t step = w ? kFloatDepth : kFloatDepth / t.d * t.d;
    const uint32_t* x = static_cast<const uint32_t*>(t.x) + (row * t.pitch + k0) / P::kPair;
    for (int64_t k = 0; k < depth; k += step) {
        int64_t now = depth - k < step ? depth - k : step;
        if (w) {
            decode_codes(*w, panel, k0 + k, now, decoded);
            P::pack(decoded, now);
        } else {
            decode_vectors(t, t.d / P::kPair, panel, (k0 + k) / t.d, now / t.d,
                           reinterpret_cast<uint32_t*>(decoded));
        }
        multiply<typename P::Product>(rows, kPanel, now / P::kPair, x + k / P::kPair,
                                      t.pitch / P::kPair, decoded, kPanel, sums, kPanel, k > 0);
    }
}

template <class P>
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
        if (w && rows <= kFewRows && P::kPair == 1)
            gemv(t, *w, panel, row, rows, g * group, group, part);
        else
            multiply_decoded<P>(t, w, panel, row, rows, g * group, group, part, decoded);
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
