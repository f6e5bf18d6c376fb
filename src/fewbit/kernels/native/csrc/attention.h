// Softmax(q k^T) v of one head, 24 queries by 256 keys at a time with a running maximum, so that
// nothing of the size queries x keys is ever held. P is the type of the two products.

struct Fp32Attention {
    using Product = Fp32;
    using Element = float;
    static constexpr int kPair = 1;  // elements in a dword

    static inline void pair(uint32_t* to, const float* a, const float*, int64_t d) {
        __builtin_memcpy(to, a, d * sizeof(float));
    }
    static inline void put(float* to, float x) { *to = x; }
    static inline void put_vector(float* to, f32 x) { store(to, x); }
};

template <class P>
struct Buffers {  // pitches in dwords
    int64_t depth, wide, keys;
    uint32_t *k, *v, *q, *p;
    float *s, *o, *most, *total;

    Buffers(const AttentionTask& t, uint8_t* scratch) {
        depth = up(t.d, P::kPair) / P::kPair;
        wide = up(t.d, LANES);
        keys = up(t.keys, kKeys);
        k = reinterpret_cast<uint32_t*>(scratch);
        v = k + keys * depth;
        q = v + keys / P::kPair * wide;
        p = q + kQueries * depth;
        s = reinterpret_cast<float*>(p + kQueries * kKeys / P::kPair);
        o = s + kQueries * kKeys;
        most = o + kQueries * wide;
        total = most + kQueries;
    }
};

// [keys / 64][d][64]: a row of dwords holds one or two neighbouring elements of each key.
template <class P>
static void pack_keys(const AttentionTask& t, const typename P::Element* k, Buffers<P>& b) {
    int64_t whole = t.d / P::kPair;
    for (int64_t key = 0; key < b.keys; ++key) {
        uint32_t* to = b.k + key / kPanel * kPanel * b.depth + key % kPanel;
        const typename P::Element* from = k + key * t.k_stride[2];
        int64_t i = 0;
        if (key < t.keys)
            for (; i < whole; ++i) __builtin_memcpy(to + i * kPanel, from + i * P::kPair, 4);
        for (; i < b.depth; ++i) to[i * kPanel] = 0;
        if (key < t.keys && whole < b.depth)
            __builtin_memcpy(to + whole * kPanel, from + whole * P::kPair, 4 / P::kPair);
    }
}

// [keys][d], neighbouring keys together in a dword where it holds two.
template <class P>
static void pack_values(const AttentionTask& t, const typename P::Element* v, Buffers<P>& b) {
    for (int64_t key = 0; key < b.keys; key += P::kPair) {
        uint32_t* row = b.v + key / P::kPair * b.wide;
        const typename P::Element* from = v + key * t.v_stride[2];
        int64_t i = 0;
        if (key < t.keys) {
            P::pair(row, from, key + 1 < t.keys ? from + t.v_stride[2] : nullptr, t.d);
            i = t.d;
        }
        for (; i < b.wide; ++i) row[i] = 0;
    }
}

static void add_mask(const AttentionTask& t, const float* mask, int64_t query, int64_t count, int64_t key,
                     int64_t keys, float* s) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < keys; ++j)
            s[i * kKeys + j] += mask[(query + i) * t.mask_stride[2] + (key + j) * t.mask_stride[3]];
}

// Exponentials of one block of scores; the sums so far are brought to the new maximum.
template <class P>
static void soften(int64_t count, int64_t keys, Buffers<P>& b) {
    typedef typename P::Element Element;
    int64_t padded = up(keys, LANES);
    for (int64_t i = 0; i < count; ++i) {
        float* s = b.s + i * kKeys;
        for (int64_t j = keys; j < padded; ++j) s[j] = -__builtin_inff();
        f32 most = splat(-__builtin_inff());
        for (int64_t j = 0; j < padded; j += LANES) most = pick_max(load(s + j), most);
        float before = b.most[i], now = largest(most);
        now = before > now ? before : now;
        // A row with nothing to look at: any finite number keeps inf - inf out.
        float around = now == -__builtin_inff() ? 0.0f : now;
        f32 all = {};
        Element* p = reinterpret_cast<Element*>(b.p) + i * kKeys;
        for (int64_t j = 0; j < padded; j += LANES) {
            f32 e = exponential_of_bounded(load(s + j) - around);
            all += e;
            P::put_vector(p + j, e);
        }
        for (int64_t j = padded; j < kKeys; ++j) P::put(p + j, 0.0f);
        float shrink = exponential_of_bounded(splat(before - around))[0];
        b.total[i] = b.total[i] * shrink + sum(all);
        b.most[i] = now;
        if (shrink != 1.0f)
            for (int64_t j = 0; j < b.wide; j += LANES)
                store(b.o + i * b.wide + j, load(b.o + i * b.wide + j) * shrink);
    }
}

// A share to the nearest level of both regions, as fewbit.activations.multi_region has it. NaN, which
// is below nothing, stays.
static inline f32 rounded_share(const Regions& r, f32 x) {
    f32 fine = pick_min(nearest_even(x * r.per_low), splat(r.most_low)) * r.low;
    f32 coarse = pick_max(splat(r.least_high), nearest_even(x * r.per_high));
    coarse = pick_min(splat(r.most_high), coarse) * r.high;
    return x < splat(r.split) ? fine : coarse;
}

// Of one block of scores, when the maximum and the sum of all are known.
template <class P>
static void share_out(const Regions& regions, int64_t count, int64_t keys, Buffers<P>& b) {
    typedef typename P::Element Element;
    int64_t padded = up(keys, LANES);
    for (int64_t i = 0; i < count; ++i) {
        float* s = b.s + i * kKeys;
        for (int64_t j = keys; j < padded; ++j) s[j] = -__builtin_inff();
        float around = b.most[i] == -__builtin_inff() ? 0.0f : b.most[i];
        Element* p = reinterpret_cast<Element*>(b.p) + i * kKeys;
        for (int64_t j = 0; j < padded; j += LANES) {
            f32 share = exponential_of_bounded(load(s + j) - around) / b.total[i];
            P::put_vector(p + j, rounded_share(regions, share));
        }
        for (int64_t j = padded; j < kKeys; ++j) P::put(p + j, 0.0f);
    }
}

template <class P>
static void find_scores(const AttentionTask& t, const float* mask, int64_t query, int64_t count,
                        int64_t key, int64_t keys, Buffers<P>& b) {
    typedef typename P::Product Product;
    int64_t padded = up(keys, LANES);
    for (int64_t e = 0; e < padded; e += kPanel)
        multiply<Product>(count, padded - e < kPanel ? padded - e : kPanel, b.depth, b.q, b.depth,
                          b.k + (key + e) * b.depth, kPanel, b.s + e, kKeys, false);
    for (int64_t r = 0; r < count; ++r)
        for (int64_t e = 0; e < padded; e += LANES)
            store(b.s + r * kKeys + e, load(b.s + r * kKeys + e) * t.scale);
    if (mask) add_mask(t, mask, query, count, key, keys, b.s);
}

template <class P>
static void attention(const AttentionTask& t, int64_t head, uint8_t* scratch) {
    typedef typename P::Element Element;
    typedef typename P::Product Product;
    Buffers<P> b(t, scratch);
    int64_t i = head / t.h, j = head % t.h;
    const Element* q = static_cast<const Element*>(t.q) + i * t.q_stride[0] + j * t.q_stride[1];
    pack_keys<P>(t, static_cast<const Element*>(t.k) + i * t.k_stride[0] + j * t.k_stride[1], b);
    pack_values<P>(t, static_cast<const Element*>(t.v) + i * t.v_stride[0] + j * t.v_stride[1], b);
    const float* mask = t.mask ? t.mask + i * t.mask_stride[0] + j * t.mask_stride[1] : nullptr;
    const Regions* regions = t.regions ? t.regions + (t.many_regions ? i : 0) : nullptr;
    for (int64_t query = 0; query < t.queries; query += kQueries) {
        int64_t count = t.queries - query < kQueries ? t.queries - query : kQueries;
        Element* packed = reinterpret_cast<Element*>(b.q);
        for (int64_t r = 0; r < count; ++r) {
            Element* to = packed + r * b.depth * P::kPair;
            __builtin_memcpy(to, q + (query + r) * t.q_stride[2], t.d * sizeof(Element));
            if (t.d < b.depth * P::kPair) to[t.d] = 0;
            b.most[r] = -__builtin_inff();
            b.total[r] = 0;
        }
        for (int64_t e = 0; e < count * b.wide; ++e) b.o[e] = 0;
        for (int64_t key = 0; regions && key < t.keys; key += kKeys) {
            int64_t keys = t.keys - key < kKeys ? t.keys - key : kKeys;
            find_scores<P>(t, mask, query, count, key, keys, b);
            soften<P>(count, keys, b);
        }
        for (int64_t key = 0; key < t.keys; key += kKeys) {
            int64_t keys = t.keys - key < kKeys ? t.keys - key : kKeys;
            find_scores<P>(t, mask, query, count, key, keys, b);
            if (regions) share_out<P>(*regions, count, keys, b);
            else soften<P>(count, keys, b);
            multiply<Product>(count, b.wide, up(keys, P::kPair) / P::kPair, b.p, kKeys / P::kPair,
                              b.v + key / P::kPair * b.wide, b.wide, b.o, b.wide, true);
        }
        for (int64_t r = 0; r < count; ++r) {
            float inverse = regions ? 1.0f : b.total[r] == 0 ? 0.0f : 1.0f / b.total[r];
            int64_t at = ((i * t.queries + query + r) * t.h + j) * t.d;
            for (int64_t e = 0; e < t.d; e += LANES)
                store_some(t.out, at + e, t.dtype, load(b.o + r * b.wide + e) * inverse, t.d - e);
        }
    }
}
