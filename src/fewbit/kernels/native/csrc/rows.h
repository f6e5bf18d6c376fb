// One pass over a row: layer norm and modulation, signs and rotation, absmax, codes.

static void read_row(const Rows& t, int64_t row, float* y) {
    int64_t i = 0, at = row * t.k;
    for (; i + LANES <= t.k; i += LANES) store(y + i, load_any(t.x, t.dtype, at + i));
    for (; i < t.k; ++i) y[i] = load_one(t.x, t.dtype, at + i);
}

static float mean_of(const float* y, int64_t k) {
    f64 low = {}, high = {};
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        low += low_doubles(load(y + i));
        high += high_doubles(load(y + i));
    }
    double total = sum(low + high);
    for (; i < k; ++i) total += y[i];
    return float(total / double(k));
}

static double variance_of(const float* y, int64_t k, float mean) {
    f64 low = {}, high = {};
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        const f32 centred = load(y + i) - mean;
        const f64 a = low_doubles(centred), b = high_doubles(centred);
        low += a * a;
        high += b * b;
    }
    double total = sum(low + high);
    for (; i < k; ++i) {
        const double centred = y[i] - mean;
        total += centred * centred;
    }
    return total / double(k);
}

static void normalize(const Rows& t, int64_t row, float* y) {
    const float mean = mean_of(y, t.k);
    const float inverse = float(1.0 / __builtin_sqrt(variance_of(y, t.k, mean) + t.eps));
    const float* shift = t.shift + row / t.tokens * t.k;
    const float* scale = t.scale + row / t.tokens * t.k;
    int64_t i = 0;
    for (; i + LANES <= t.k; i += LANES)
        store(y + i, (load(y + i) - mean) * inverse * (1.0f + load(scale + i)) + load(shift + i));
    for (; i < t.k; ++i) y[i] = (y[i] - mean) * inverse * (1.0f + scale[i]) + shift[i];
}

// Along one axis of [.., order, behind] floats: each sum runs upwards over the rows of the matrix.
static void mix(const float* matrix, int64_t order, int64_t behind, int64_t size, const float* from,
                float* to) {
    for (int64_t at = 0; at < size; at += order * behind)
        multiply<Fp32>(order, behind, order, matrix, order, from + at, behind, to + at, behind, false);
}

// from[rows][wide] to to[wide][rows], both of them multiples of LANES.
static void turn(int64_t rows, int64_t wide, const float* from, float* to) {
    for (int64_t i = 0; i < rows; i += LANES)
        for (int64_t j = 0; j < wide; j += LANES) {
            f32 square[LANES];
#pragma GCC unroll 16
            for (int n = 0; n < LANES; ++n) square[n] = load(from + (i + n) * wide + j);
            transpose(square);
#pragma GCC unroll 16
            for (int n = 0; n < LANES; ++n) store(to + (j + n) * rows + i, square[n]);
        }
}

// The row as a matrix of `t.last` columns, padded to [rows][wide]. Matrices that mix axes of its rows
// have at least `wide` floats behind them; for the others it is turned, and stays so.
static const float* rotate(const Rows& t, float* y, float* spare) {
    const int64_t c = t.last, r = t.k / c, wide = up(c, 16), rows = up(r, 16);
    float *x = y, *other = spare;
    auto swap = [&] { float* last = x; x = other; other = last; };
    if (wide == c) {
        for (int64_t i = 0; i < t.k; i += LANES) store(y + i, load(y + i) * load(t.signs + i));
    } else {
        std::memset(spare, 0, r * wide * sizeof(float));
        for (int64_t i = 0; i < r; ++i)
            for (int64_t j = 0; j < c; ++j) spare[i * wide + j] = y[i * c + j] * t.signs[i * c + j];
        swap();
    }
    const float* matrix = t.matrices;
    int64_t behind = t.order / c * wide;
    for (int n = 0; n < t.count; ++n) {
        const int64_t order = t.orders[n];
        if (n == t.lead) {
            std::memset(x + r * wide, 0, (rows - r) * wide * sizeof(float));
            turn(rows, wide, x, other);
            swap();
            behind = c * rows;
        }
        behind /= order;
        mix(matrix, order, behind, n < t.lead ? r * wide : c * rows, x, other);
        matrix += order * order;
        swap();
    }
    return x;
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

// Nearest level, ties to the even code: adding so large a number that a float keeps just the bits
// that the format keeps, and subtracting it again. The result counts steps.
struct Nearest {
    f32 steps;
    u32 power, least, beyond;
    bool odd;  // without mantissa bits the even codes are every other power of two

    explicit Nearest(const Rows& t) : steps(splat(1.0f / t.step)), odd(t.mantissa == 0) {
        const bool integer = t.smallest_normal > 3e38f;
        power = u32{} + (integer ? 0u : 0xffu << 23);
        least = (u32)splat(integer ? 1.0f : t.smallest_normal);
        beyond = u32{} + (uint32_t(23 - (integer ? 0 : t.mantissa)) << 23 | 1u << 22);
    }

    inline i32 operator()(f32 units) const {
        u32 anchor = (u32)units & power;
        anchor = anchor > least ? anchor : least;
        if (odd) anchor += (anchor >> 23 & 1) ^ 1;
        const f32 far = (f32)(anchor + beyond);
        const f32 value = (units + far) - far;
        return (i32)(value * steps + 12582912.0f) - 0x4b400000;
    }
};

// The largest level is at `absmax`: what values are multiplied with; 0 for a row that is lost.
static float fit(const Rows& t, uint32_t absmax_bits, float norm, float* scale) {
    float absmax;
    __builtin_memcpy(&absmax, &absmax_bits, 4);
    absmax *= norm;
    if (!(absmax <= 3.402823466e38f)) {
        *scale = __builtin_nanf("");
        return 0;
    }
    float span = absmax == 0 ? 1.0f : absmax / t.top;
    span = span < 1.17549435e-38f ? 1.17549435e-38f : span;
    *scale = span * t.step;
    return 1.0f / span;
}

static void quantize_plain(const Rows& t, const float* y, int8_t* codes, float* scale) {
    const int64_t k = t.k;
    const float inverse = fit(t, absmax_bits(y, k), 1.0f, scale);
    if (inverse == 0) {
        std::memset(codes, 0, k);
        return;
    }
    const Nearest nearest(t);
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store_int8(codes + i, nearest(load(y + i) * inverse));
    if (i < k) {
        i32 steps = nearest(load_some(y + i, k - i) * inverse);
        for (int64_t j = i; j < k; ++j) codes[j] = int8_t(steps[j - i]);
    }
}

// Of a row that was turned: sixteen columns of LANES rows at a time.
static void quantize_turned(const Rows& t, const float* x, int8_t* codes, float* scale) {
    const int64_t c = t.last, r = t.k / c, rows = up(r, 16);
    const float norm = t.norm, inverse = fit(t, absmax_bits(x, c * rows), norm, scale);
    if (inverse == 0) {
        std::memset(codes, 0, t.k);
        return;
    }
    const Nearest nearest(t);
    for (int64_t j = 0; j < c; j += 16)
        for (int64_t i = 0; i < r; i += LANES) {
            int32_t four[4][LANES];
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                const float* from = x + (j + 4 * q) * rows + i;
                u32 bytes = {};
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) {
                    u32 code = (u32)nearest(load(from + n * rows) * norm * inverse);
                    bytes |= (code & 255) << 8 * n;
                }
                *reinterpret_cast<u32*>(four[q]) = bytes;
            }
            const int64_t there = c - j < 16 ? c - j : 16, last = r - i < LANES ? r - i : LANES;
            for (int64_t n = 0; n < last; ++n) {
                const int32_t row[4] = {four[0][n], four[1][n], four[2][n], four[3][n]};
                int8_t* to = codes + (i + n) * c + j;
                if (there == 16) __builtin_memcpy(to, row, 16);
                else std::memcpy(to, row, there);
            }
        }
}

static void row_kernel(const Rows& t, int64_t row, float* scratch) {
    float* y = scratch;
    read_row(t, row, y);
    if (t.shift) normalize(t, row, y);
    if (!t.codes) {
        for (int64_t i = 0; i < t.k; i += LANES)
            store_some(t.out, row * t.k + i, t.dtype, load_some(y + i, t.k - i), t.k - i);
        return;
    }
    if (t.signs) {
        const float* x = rotate(t, y, scratch + t.space);
        return quantize_turned(t, x, t.codes + row * t.k, t.scales + row);
    }
    quantize_plain(t, y, t.codes + row * t.k, t.scales + row);
}

static void gelu_kernel(const void* x, void* out, int64_t begin, int64_t end, int dtype) {
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES)
        store_some(out, i, dtype, gelu_tanh(load_any(x, dtype, i)), LANES);
    float rest[LANES] = {};
    for (int64_t j = i; j < end; ++j) rest[j - i] = load_one(x, dtype, j);
    if (i < end) store_some(out, i, dtype, gelu_tanh(load(rest)), end - i);
}
