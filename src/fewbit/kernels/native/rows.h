// One pass over a row: layer norm and modulation, signs and rotation, absmax, codes.

static inline f32 load_any(const void* x, int dtype, int64_t at) {
    return dtype == kFloat32 ? load(static_cast<const float*>(x) + at)
                             : load_bf16(static_cast<const uint16_t*>(x) + at);
}

static inline float load_one(const void* x, int dtype, int64_t at) {
    if (dtype == kFloat32) return static_cast<const float*>(x)[at];
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(x)[at]) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

static void read_row(const Rows& t, int64_t row, float* y) {
    int64_t i = 0, at = row * t.k;
    for (; i + LANES <= t.k; i += LANES) store(y + i, load_any(t.x, t.dtype, at + i));
    for (; i < t.k; ++i) y[i] = load_one(t.x, t.dtype, at + i);
}

static float total(const float* y, int64_t k) {
    f32 a = {}, b = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        a += load(y + i);
        b += load(y + i + LANES);
    }
    float rest = sum(a + b);
    for (; i < k; ++i) rest += y[i];
    return rest;
}

static float squares(const float* y, int64_t k, float mean) {
    f32 a = {}, b = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        f32 u = load(y + i) - mean, v = load(y + i + LANES) - mean;
        a = fma(u, u, a);
        b = fma(v, v, b);
    }
    float rest = sum(a + b);
    for (; i < k; ++i) rest += (y[i] - mean) * (y[i] - mean);
    return rest;
}

static void normalize(const Rows& t, int64_t row, float* y) {
    float mean = total(y, t.k) / float(t.k);
    float variance = squares(y, t.k, mean) / float(t.k);
    float inverse = 1.0f / __builtin_sqrtf(variance + t.eps);
    const float* shift = t.shift + row / t.tokens * t.k;
    const float* scale = t.scale + row / t.tokens * t.k;
    int64_t i = 0;
    for (; i + LANES <= t.k; i += LANES)
        store(y + i, (load(y + i) - mean) * inverse * (1.0f + load(scale + i)) + load(shift + i));
    for (; i < t.k; ++i) y[i] = (y[i] - mean) * inverse * (1.0f + scale[i]) + shift[i];
}

// Every r*c of the row, as a matrix X, becomes left^T X right / sqrt(rc).
static void rotate(const Rows& t, float* y, float* scratch) {
    const float norm = t.norm;  // a local, because y might alias what t points to
    int64_t at = 0;
    for (; at + LANES <= t.k; at += LANES) store(y + at, load(y + at) * load(t.signs + at));
    for (; at < t.k; ++at) y[at] *= t.signs[at];
    int64_t wide = up(t.c, 16);  // the pitch of `right`
    float* padded = scratch;              // [r, wide]
    float* mixed = scratch + t.r * wide;  // [r, wide]
    for (int64_t block = 0; block < t.k; block += t.r * t.c) {
        float* x = y + block;
        const float* source = x;
        int64_t pitch = t.c;
        if (wide != t.c) {
            for (int64_t i = 0; i < t.r; ++i)
                for (int64_t j = 0; j < wide; ++j) padded[i * wide + j] = j < t.c ? x[i * t.c + j] : 0;
            source = padded;
            pitch = wide;
        }
        if (t.r > 1) {
            multiply<Fp32>(t.r, wide, t.r, t.left, t.r, source, pitch, mixed, wide, false);
            source = mixed;
            pitch = wide;
        }
        float* product = source == padded ? mixed : padded;
        multiply<Fp32>(t.r, wide, t.c, source, pitch, t.right, wide, product, wide, false);
        for (int64_t i = 0; i < t.r; ++i) {
            int64_t j = 0;
            for (; j + LANES <= t.c; j += LANES)
                store(x + i * t.c + j, load(product + i * wide + j) * norm);
            for (; j < t.c; ++j) x[i * t.c + j] = product[i * wide + j] * norm;
        }
    }
}

// As an integer, so that it vectorizes, and that NaN is larger than infinity, and both than numbers.
static inline uint32_t absmax_bits(const float* y, int64_t k) {
    u32 a = {}, b = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        u32 x = (u32)load(y + i) & 0x7fffffffu, z = (u32)load(y + i + LANES) & 0x7fffffffu;
        a = x > a ? x : a;
        b = z > b ? z : b;
    }
    a = a > b ? a : b;
    uint32_t most = 0;
    for (int j = 0; j < LANES; ++j) most = a[j] > most ? a[j] : most;
    for (; i < k; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, y + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

// Nearest level, ties to the even code: a normal number drops mantissa bits of its float32, a
// subnormal one is a multiple of the step. The result counts steps.
struct Nearest {
    f32 top, steps, smallest_normal;
    u32 below_half;
    int dropped;

    explicit Nearest(const Rows& t)
        : top(splat(t.top)), steps(splat(1.0f / t.step)), smallest_normal(splat(t.smallest_normal)),
          below_half(u32{} + ((1u << (22 - t.mantissa)) - 1)), dropped(23 - t.mantissa) {}

    inline i32 operator()(f32 units) const {
        u32 bits = (u32)units;
        f32 magnitude = (f32)(bits & 0x7fffffffu);
        magnitude = magnitude > top ? top : magnitude;
        u32 exact = (u32)magnitude;
        u32 half = exact + ((exact >> dropped) & 1) + below_half;
        f32 normal = (f32)(half >> dropped << dropped);
        f32 value = magnitude < smallest_normal ? magnitude : normal;
        i32 count = (i32)(value * steps + 12582912.0f) - 0x4b400000;
        i32 negative = (i32)bits >> 31;
        return (count ^ negative) - negative;
    }
};

static void quantize_group(const Rows& t, const float* y, int64_t k, int8_t* codes, float* scale) {
    uint32_t most = absmax_bits(y, k);
    if (most >= 0x7f800000u) {
        *scale = __builtin_nanf("");
        for (int64_t i = 0; i < k; ++i) codes[i] = 0;
        return;
    }
    float absmax;
    __builtin_memcpy(&absmax, &most, 4);
    float span = absmax == 0 ? 1.0f : absmax / t.top;
    span = span < 1.17549435e-38f ? 1.17549435e-38f : span;
    *scale = span * t.step;
    const float inverse = 1.0f / span;
    const Nearest nearest(t);
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store_int8(codes + i, nearest(load(y + i) * inverse));
    if (i < k) {
        i32 steps = nearest(load_some(y + i, k - i) * inverse);
        for (int64_t j = i; j < k; ++j) codes[j] = int8_t(steps[j - i]);
    }
}

static void row_kernel(const Rows& t, int64_t row, float* scratch) {
    float* y = scratch;
    read_row(t, row, y);
    if (t.shift) normalize(t, row, y);
    if (t.signs) rotate(t, y, scratch + up(t.k, 16));
    if (!t.codes) {
        for (int64_t i = 0; i < t.k; i += LANES)
            store_some(t.out, row * t.k + i, t.dtype, load_some(y + i, t.k - i), t.k - i);
        return;
    }
    int64_t group = t.k / t.groups;
    for (int64_t g = 0; g < t.groups; ++g)
        quantize_group(t, y + g * group, group, t.codes + row * t.k + g * group,
                       t.scales + row * t.groups + g);
}
