// The C functions that Python calls: the choice of instruction set, the split over threads, and the
// memory of each thread. Zero is success; 1 is no memory; 2 a weight that was not packed here.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __unix__
#include <pthread.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "crc32.h"
#include "tasks.h"

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace fewbit;

namespace {

enum Status : int32_t { kDone = 0, kNoMemory = 1, kNotPacked = 2 };

// A forked child has none of its parent's threads and would wait for them for ever.
bool forked = false;
#ifdef __unix__
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

#ifdef FEWBIT_NEON
bool has_dot_product() {
#ifdef __linux__
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Apple and every Windows machine of this kind has it
#endif
}
#endif

const Kernels* chosen = &kScalar;

const Kernels* supported(const char* name) {
    if (!std::strcmp(name, "scalar")) return &kScalar;
#ifdef FEWBIT_AVX2
    if (!std::strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &kAvx2;
#endif
#ifdef FEWBIT_AVX512
    if (!std::strcmp(name, "avx512vnni") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return &kAvx512;
#endif
#ifdef FEWBIT_NEON
    if (!std::strcmp(name, "neon") && has_dot_product()) return &kNeon;
#endif
    return nullptr;
}

bool has_bf16() {
#ifdef FEWBIT_AVX512BF16
    return chosen == &kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

struct Memory {  // of one thread, kept from call to call
    void* bytes = nullptr;
    int64_t size = 0;

    uint8_t* at_least(int64_t wanted) {
        if (wanted > size) {
            std::free(bytes);
            size = up(wanted, 4096);
            bytes = std::aligned_alloc(64, size);
            if (!bytes) size = 0;
        }
        return static_cast<uint8_t*>(bytes);
    }

    ~Memory() { std::free(bytes); }
};

thread_local Memory scratch;
thread_local Memory inputs;

int threads_for(int64_t tasks) {
#ifdef _OPENMP
    int most = forked || omp_in_parallel() ? 1 : omp_get_max_threads();
    return int(tasks < most ? (tasks > 0 ? tasks : 1) : most);
#else
    (void)tasks;
    return 1;
#endif
}

template <class Task>
int32_t for_each(int64_t tasks, int64_t scratch_bytes, const Task& task) {
    int threads = threads_for(tasks);
    if (threads == 1) {
        uint8_t* memory = scratch.at_least(scratch_bytes);
        if (!memory) return kNoMemory;
        for (int64_t i = 0; i < tasks; ++i) task(i, memory);
        return kDone;
    }
    std::atomic<int32_t> status{kDone};
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        uint8_t* memory = scratch.at_least(scratch_bytes);
        if (!memory) status = kNoMemory;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; ++i)
            if (memory) task(i, memory);
    }
#endif
    return status;
}

bool is_packed(const uint8_t* bytes, int64_t size) {
    if (size < int64_t(sizeof(Header))) return false;
    const Header& h = *reinterpret_cast<const Header*>(bytes);
    return h.magic == kMagic && (h.bits == 4 || h.bits == 8) && h.n >= 0 && h.k >= 0 &&
           h.tables >= 0 && h.tables <= kTables && size == Packed::bytes(h.n, h.k, h.bits, h.tables);
}

int64_t panels(int64_t n) { return up(n, kPanel) / kPanel; }

// Six rows are a tile; what a thread has for itself should be many of them.
int64_t rows_at_once(int64_t m, int64_t most, int64_t n) {
    int64_t rows = m < most ? m : most;
    while (rows > 96 && panels(n) * (up(m, rows) / rows) < 2 * threads_for(1 << 20))
        rows = up((rows + 1) / 2, kMaxRows);
    return rows;
}

}  // namespace

EXPORT int32_t fewbit_abi() { return 5; }

EXPORT int32_t fewbit_supports(const char* name) { return supported(name) != nullptr; }

EXPORT void fewbit_choose(const char* name) { chosen = supported(name); }

EXPORT int32_t fewbit_has_attention(int32_t dtype) {
    return dtype == kBfloat16 ? has_bf16() : chosen->attention_fp32 != nullptr;
}

EXPORT int32_t fewbit_has_crc32() { return crc32::is_fast(); }

// Of many pieces of memory: `crcs` holds what came before each, then the results.
EXPORT void fewbit_crc32(const uint8_t* const* pieces, const int64_t* sizes, uint32_t* crcs,
                         int64_t count) {
    for (int64_t i = 0; i < count; ++i) crcs[i] = crc32::update(crcs[i], pieces[i], sizes[i]);
}

EXPORT int32_t fewbit_threads() { return threads_for(1 << 20); }

EXPORT int64_t fewbit_packed_bytes(int64_t n, int64_t k, int32_t bits, int32_t tables) {
    return Packed::bytes(n, k, bits, tables);
}

// What a packed weight is: {bits, n, k}.
EXPORT int32_t fewbit_packed_shape(const uint8_t* bytes, int64_t size, int32_t* shape) {
    if (!is_packed(bytes, size)) return kNotPacked;
    const Header& h = *reinterpret_cast<const Header*>(bytes);
    shape[0] = h.bits;
    shape[1] = h.n;
    shape[2] = h.k;
    return kDone;
}

// 4 bits: `codes` are nibbles and `table` int8 [tables][16]. 8 bits: they are int8 levels.
EXPORT void fewbit_pack(const uint8_t* codes, const int8_t* table, const uint8_t* choices, int64_t n,
                        int64_t k, int32_t bits, int32_t tables, uint8_t* out) {
    std::memset(out, 0, Packed::bytes(n, k, bits, tables));
    Header& h = *reinterpret_cast<Header*>(out);
    h = {kMagic, bits, int32_t(n), int32_t(k), tables, 0, 0, {}, {}};
    const int8_t* levels = bits == 4 ? table : reinterpret_cast<const int8_t*>(codes);
    int64_t count = bits == 4 ? tables * 16 : n * k;
    int low = 0, high = 0;
    for (int64_t i = 0; i < count; ++i) {
        low = levels[i] < low ? levels[i] : low;
        high = levels[i] > high ? levels[i] : high;
    }
    h.offset = -low;
    h.top = high - low;
    for (int i = 0; i < tables * 16; ++i) h.table[i / 16][i % 16] = uint8_t(table[i] - low);
    Packed packed(out);
    uint8_t* to = const_cast<uint8_t*>(packed.panels);
    if (tables > 1) std::memcpy(const_cast<uint8_t*>(packed.choices), choices, n);
    int64_t panel_bytes = Packed::panel_bytes(k, bits);
    for (int64_t row = 0; row < n; ++row) {
        uint8_t* panel = to + row / kPanel * panel_bytes + row % kPanel * 4;
        for (int64_t i = 0; i < k; ++i) {
            uint8_t code = codes[row * k + i];
            if (bits == 4) panel[i / 8 * kPanel * 4 + i % 4] |= uint8_t((code & 15) << (i % 8 / 4 * 4));
            else panel[i / 4 * kPanel * 4 + i % 4] = uint8_t(int8_t(code) - low);
        }
    }
}

EXPORT int32_t fewbit_unpack(const uint8_t* bytes, int64_t size, uint8_t* codes) {
    if (!is_packed(bytes, size)) return kNotPacked;
    Packed packed(bytes);
    const Header& h = *packed.header;
    for (int64_t row = 0; row < h.n; ++row) {
        const uint8_t* panel = packed.panel(row / kPanel) + row % kPanel * 4;
        for (int64_t i = 0; i < h.k; ++i)
            codes[row * h.k + i] =
                h.bits == 4 ? panel[i / 8 * kPanel * 4 + i % 4] >> (i % 8 / 4 * 4) & 15
                            : uint8_t(panel[i / 4 * kPanel * 4 + i % 4] - h.offset);
    }
    return kDone;
}

EXPORT int32_t fewbit_linear(const int8_t* codes, const float* scales, const uint8_t* bytes,
                             int64_t size, const float* weight_scales, const float* bias,
                             const float* gate, const void* residual, void* out, int64_t m,
                             int64_t n, int64_t k, int64_t tokens, int32_t groups,
                             int32_t scale_groups, int32_t gelu, int32_t out_dtype) {
    if (!is_packed(bytes, size)) return kNotPacked;
    Packed packed(bytes);
    if (packed.header->n != n || packed.header->k != k) return kNotPacked;
    if (m == 0 || n == 0) return kDone;
    int64_t pitch = up(k, kDepth), padded = pitch == k ? 0 : up(m * pitch, 64);
    uint8_t* memory = inputs.at_least(padded + m * groups * int64_t(sizeof(int32_t)) + 64);
    if (!memory) return kNoMemory;
    if (padded) {
        std::memset(memory, 0, padded);
        for (int64_t i = 0; i < m; ++i) std::memcpy(memory + i * pitch, codes + i * k, k);
        codes = reinterpret_cast<const int8_t*>(memory);
    }
    int32_t* sums = reinterpret_cast<int32_t*>(memory + padded);
    const Kernels* kernels = chosen;
    std::atomic<int32_t> largest{0};
    for_each(up(m, kSumsAtOnce) / kSumsAtOnce, 64, [&](int64_t i, uint8_t*) {
        int32_t own = 0;
        int64_t end = (i + 1) * kSumsAtOnce < m ? (i + 1) * kSumsAtOnce : m;
        for (int64_t at = i * kSumsAtOnce * groups; at < end * groups; ++at)
            sums[at] = kernels->sums(codes + at / groups * pitch + at % groups * (pitch / groups),
                                     pitch / groups, &own);
        for (int32_t seen = largest; own > seen && !largest.compare_exchange_weak(seen, own);) {
        }
    });
    Linear task = {codes, scales, sums, weight_scales, bias, gate, residual, out, m, pitch, tokens,
                   scale_groups, groups, largest, gelu, out_dtype, threads_for(panels(n))};
    int64_t rows = rows_at_once(m, kIntegerRows, n), count = panels(n);
    int64_t wanted = (groups + 1) * kPanel * int64_t(sizeof(float)) + pitch * (3 * kPanel + 2 * kMaxRows);
    return for_each(count * (up(m, rows) / rows), wanted, [&](int64_t i, uint8_t* own) {
        int64_t row = i / count * rows;
        kernels->linear(task, packed, i % count, row, m - row < rows ? m - row : rows, own);
    });
}

// Where bfloat16 is multiplied as such.
EXPORT int32_t fewbit_has_bf16() { return has_bf16(); }

// `bytes` holds the weight, or else `assignments` and `codebook` do.
// x, and a codebook with it, is bfloat16 only where there is `fewbit_has_bf16`.
EXPORT int32_t fewbit_float_linear(const void* x, const uint8_t* bytes, int64_t size,
                                   const uint8_t* assignments, const void* codebook,
                                   const float* weight_scales, const float* bias, void* out,
                                   int64_t m, int64_t n, int64_t k, int64_t d, int32_t groups,
                                   int32_t dtype, int32_t out_dtype) {
    if (bytes && !is_packed(bytes, size)) return kNotPacked;
    if (m == 0 || n == 0) return kDone;
    int64_t pitch = bytes ? up(k, kDepth) : k, element = dtype == kBfloat16 ? 2 : 4;
    if (pitch != k) {
        uint8_t* padded = inputs.at_least(m * pitch * element);
        if (!padded) return kNoMemory;
        for (int64_t i = 0; i < m; ++i) {
            std::memcpy(padded + i * pitch * element,
                        static_cast<const uint8_t*>(x) + i * k * element, k * element);
            std::memset(padded + (i * pitch + k) * element, 0, (pitch - k) * element);
        }
        x = padded;
    }
    alignas(Packed) unsigned char room[sizeof(Packed)];
    const Packed* packed = bytes ? new (room) Packed(bytes) : nullptr;
    if (packed && (packed->header->n != n || packed->header->k != k)) return kNotPacked;
    FloatLinear task = {x, weight_scales, bias, out, assignments, codebook, m, n, k, pitch, d,
                        groups, out_dtype};
    int64_t rows = rows_at_once(m, dtype == kBfloat16 ? kHalfRows : kFloatRows, n);
    int64_t count = panels(n);
    int64_t wanted = int64_t(sizeof(float)) * kPanel * (groups + 1 + 2 * rows + kFloatDepth + kDepth);
    auto kernel = chosen->float_linear;
#ifdef FEWBIT_AVX512BF16
    if (dtype == kBfloat16) kernel = float_linear_avx512bf16;
#endif
    return for_each(count * (up(m, rows) / rows), wanted, [&](int64_t i, uint8_t* own) {
        int64_t row = i / count * rows;
        kernel(task, packed, i % count, row, m - row < rows ? m - row : rows,
               reinterpret_cast<float*>(own));
    });
}

// Where padding to vectors costs least: how many matrices, and what the others have of columns.
static void divide(Rows& t) {
    int64_t least = INT64_MAX, columns = t.order;
    for (int n = 0; n < t.count; ++n) {
        int64_t padded = up(columns, 16) * up(t.k / columns, 16);
        if (padded < least) {
            least = t.space = padded;
            t.lead = n;
            t.last = columns;
        }
        columns /= t.orders[n];
    }
}

EXPORT int32_t fewbit_rows(const void* x, const float* shift, const float* scale, const int8_t* signs,
                           const int8_t* entries, const int32_t* orders, int8_t* codes, float* scales,
                           void* out, int64_t m, int64_t k, int64_t tokens, int32_t count,
                           int32_t groups, int32_t dtype, int32_t mantissa, float norm, float top,
                           float step, float smallest_normal, double eps) {
    Rows task = {x, shift, scale, nullptr, nullptr, {}, count, 0, 1, 1, up(k, 16), codes, scales, out,
                 m, k, tokens, groups, dtype, mantissa, norm, top, step, smallest_normal, eps};
    int64_t size = 0;
    for (int n = 0; n < count; ++n) {
        task.orders[n] = orders[n];
        task.order *= orders[n];
        size += int64_t(orders[n]) * orders[n];
    }
    float* matrices = reinterpret_cast<float*>(inputs.at_least((size + up(k, 16)) * 4 + 64));
    if (!matrices) return kNoMemory;
    float* flips = matrices + size;
    if (signs) {
        for (int64_t i = 0; i < k; ++i) flips[i] = signs[i];
        float* to = matrices;
        for (int n = 0; n < count; entries += orders[n] * orders[n], ++n)
            for (int i = 0; i < orders[n]; ++i)
                for (int j = 0; j < orders[n]; ++j) *to++ = entries[j * orders[n] + i];
        task.matrices = matrices;
        task.signs = flips;
        divide(task);
    }
    constexpr int64_t kAtOnce = 16;
    int64_t wanted = int64_t(sizeof(float)) * 2 * task.space;
    const Kernels* kernels = chosen;
    return for_each(up(m, kAtOnce) / kAtOnce, wanted, [&](int64_t i, uint8_t* own) {
        for (int64_t row = i * kAtOnce; row < m && row < (i + 1) * kAtOnce; ++row)
            kernels->row(task, row, reinterpret_cast<float*>(own));
    });
}

EXPORT int32_t fewbit_gelu(const void* x, void* out, int64_t count, int32_t dtype) {
    constexpr int64_t kAtOnce = 1 << 14;
    const Kernels* kernels = chosen;
    return for_each(up(count, kAtOnce) / kAtOnce, 64, [&](int64_t i, uint8_t*) {
        int64_t end = (i + 1) * kAtOnce < count ? (i + 1) * kAtOnce : count;
        kernels->gelu(x, out, i * kAtOnce, end, dtype);
    });
}

// `regions` are [1 or b][8] floats; see tasks.h.
EXPORT int32_t fewbit_attention(const void* q, const void* k, const void* v, const float* mask,
                                const float* regions, void* out, int64_t b, int64_t h,
                                int64_t queries, int64_t keys, int64_t d, const int64_t* strides,
                                int32_t dtype, int32_t many_regions, float scale) {
    Attention task = {q, k, v, mask, reinterpret_cast<const Regions*>(regions), out, b, h, queries,
                      keys, d, {}, {}, {}, {}, dtype, many_regions, scale};
    std::memcpy(task.q_stride, strides, sizeof(task.q_stride));
    std::memcpy(task.k_stride, strides + 3, sizeof(task.k_stride));
    std::memcpy(task.v_stride, strides + 6, sizeof(task.v_stride));
    std::memcpy(task.mask_stride, strides + 9, sizeof(task.mask_stride));
    auto kernel = chosen->attention_fp32;
#ifdef FEWBIT_AVX512BF16
    if (dtype == kBfloat16) kernel = attention_avx512bf16;
#endif
    int64_t wide = up(d, 16), padded = up(keys, kKeys);
    int64_t wanted = int64_t(sizeof(float)) *
                     (padded * (d + wide) + kQueries * (d + 2 * kKeys + wide + 2) + 64);
    return for_each(b * h, wanted, [&](int64_t i, uint8_t* own) { kernel(task, i, own); });
}
