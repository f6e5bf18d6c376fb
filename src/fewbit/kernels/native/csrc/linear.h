// Integers times integers, a panel of 64 channels at a time. An instruction set brings open_panel,
// which makes of a resting panel what its dot likes to read, and dot itself.

static constexpr int64_t kTile = kMaxRows * kPanel;

#include "panel_factors.h"

enum After { kNothing, kGelu, kGated };  // what is done to a result before it is rounded

template <int AFTER>
static inline f32 after(const Linear& t, f32 y, int64_t n, int64_t row, int64_t channel, int dtype) {
    if (AFTER == kGelu) return gelu_tanh(y);
    if (AFTER == kNothing) return y;
    const f32 gate = load_some(t.gate + row / t.tokens * n + channel, n - channel);
    return load_some_any(t.residual, dtype, row * n + channel, n - channel) + gate * y;
}

// From sums of one group, still with the offset in them, to results: most of what is not a product.
template <int AFTER, int DTYPE>
static void finish_exact(const Linear& t, int64_t n, int64_t channel, int32_t offset, int64_t row,
                         int64_t rows, const int32_t* acc, const float* factors) {
    int64_t there = n - channel < kPanel ? n - channel : kPanel;
    for (int64_t i = 0; i < rows; ++i) {
        const int32_t excess = offset * t.sums[row + i];
        const float by_row = t.scales[row + i];
        const int64_t at = (row + i) * n + channel;
        for (int64_t j = 0; j < there; j += LANES) {
            i32 exact = *reinterpret_cast<const i32*>(acc + i * kPanel + j) - excess;
            f32 y = to_floats(exact) * by_row * load(factors + j) + load(factors + kPanel + j);
            store_some(t.out, at + j, DTYPE, after<AFTER>(t, y, n, row + i, channel + j, DTYPE),
                       there - j);
        }
    }
}

// From float sums of several groups.
static void finish(const Linear& t, int64_t n, int64_t channel, int64_t row, int64_t rows,
                   const float* sums, const float* factors) {
    const float* bias = factors + t.groups * kPanel;
    int64_t there = n - channel < kPanel ? n - channel : kPanel;
    for (int64_t i = 0; i < rows; ++i) {
        const float by_row = t.scales[row + i];
        for (int64_t j = 0; j < there; j += LANES) {
            f32 y = load(sums + i * kPanel + j) * by_row + load(bias + j);
            y = t.gelu   ? after<kGelu>(t, y, n, row + i, channel + j, t.out_dtype)
                : t.gate ? after<kGated>(t, y, n, row + i, channel + j, t.out_dtype)
                         : y;
            store_some(t.out, (row + i) * n + channel + j, t.out_dtype, y, there - j);
        }
    }
}

static void add_group(const Linear& t, int32_t offset, int64_t row, int64_t rows, int64_t g,
                      const int32_t* acc, const float* factors, float* sums) {
    for (int64_t i = 0; i < rows; ++i) {
        int32_t excess = offset * t.sums[(row + i) * t.groups + g];
        for (int64_t j = 0; j < kPanel; j += LANES) {
            i32 exact = *reinterpret_cast<const i32*>(acc + i * kPanel + j) - excess;
            float* to = sums + i * kPanel + j;
            f32 value = to_floats(exact) * load(factors + g * kPanel + j);
            store(to, g ? load(to) + value : value);
        }
    }
}

// What the tile will write comes from memory while the products are made.
static inline void fetch_results(const Linear& t, int64_t n, int64_t channel, int64_t row,
                                 int64_t rows) {
    int64_t size = t.out_dtype == kFloat32 ? 4 : 2;
    int64_t bytes = (n - channel < kPanel ? n - channel : kPanel) * size;
    for (int64_t i = row; i < row + rows; ++i) {
        char* to = static_cast<char*>(t.out) + (i * n + channel) * size;
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(to + at, 1);
    }
}

template <int DTYPE>
static auto finish_as(const Linear& t) {
    return t.gelu   ? finish_exact<kGelu, DTYPE>
           : t.gate ? finish_exact<kGated, DTYPE>
                    : finish_exact<kNothing, DTYPE>;
}

// A part of a panel that is needed soon comes to the second cache.
static inline void fetch_ahead(const uint8_t* bytes, int64_t size) {
    for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

static void linear_kernel(const Linear& t, const Packed& w, int64_t panel, int64_t row,
                          int64_t rows, uint8_t* scratch) {
    const Header& h = *w.header;
    int32_t acc[kTile];
    float sums[kTile];
    float* factors = reinterpret_cast<float*>(scratch);
    uint8_t* opened = scratch + (t.groups + 1) * kPanel * sizeof(float);
    panel_factors(t.weight_scales, t.bias, h.n, t.groups, panel, factors);
    Opened weights = open_panel(t, w, panel, opened);
    int64_t group = up(h.k, kDepth) / t.groups, channel = panel * kPanel;
    auto finish_one = t.out_dtype == kFloat32 ? finish_as<kFloat32>(t) : finish_as<kBfloat16>(t);
    const int64_t bytes = (panel + t.threads) * kPanel < h.n ? Packed::panel_bytes(h.k, h.bits) : 0;
    const uint8_t* soon = w.panel(panel + t.threads);
    for (int64_t i = row; i < row + rows; i += kMaxRows) {
        int64_t count = row + rows - i < kMaxRows ? row + rows - i : kMaxRows;
        fetch_results(t, h.n, channel, i, count);
        const int64_t from = up(bytes * (i - row) / rows, 64);
        fetch_ahead(soon + from, up(bytes * (i - row + count) / rows, 64) - from);
        for (int64_t g = 0; g < t.groups; ++g) {
            dot(count, t.codes + i * t.pitch + g * group, t.pitch, weights, g * group, group, acc);
            if (t.groups > 1) add_group(t, weights.offset, i, count, g, acc, factors, sums);
        }
        if (t.groups > 1) finish(t, h.n, channel, i, count, sums, factors);
        else finish_one(t, h.n, channel, weights.offset, i, count, acc, factors);
    }
}
