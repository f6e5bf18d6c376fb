// The C functions that Python calls: the choice of instruction set, the split over threads, and the
// memory of each thread.
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
#include "kernels.h"

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace fewbit;

namespace {

enum Status : int32_t { kDone = 0, kNoMemory = 1, kNotPacked = 2, kTooDeep = 3, kNoKernel = 4 };

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

#ifdef FEWBIT_AVX512
const Kernels* avx512() {
    static const Kernels kernels = [] {
        Kernels found = kAvx512;
#ifdef FEWBIT_AVX512BF16
        if (__builtin_cpu_supports("avx512bf16")) {
            found.float_linear[kBfloat16] = float_linear_avx512bf16;
            found.attention[kBfloat16] = attention_avx512bf16;
        }
#endif
        return found;
    }();
    return &kernels;
}
#endif

const Kernels* supported(const char* name) {
    auto is = [&](const Kernels& kernels) { return !std::strcmp(name, kernels.name); };
    if (is(kScalar)) return &kScalar;
#ifdef FEWBIT_AVX2
    if (is(kAvx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
#endif
#ifdef FEWBIT_AVX512
    if (is(kAvx512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return avx512();
#endif
#ifdef FEWBIT_NEON
    if (is(kNeon) && has_dot_product()) return &kNeon;
#endif
    return nullptr;
}

const Kernels* chosen = &kScalar;

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

// Fewer rows at once where that gives every thread two tasks, but no fewer than 16 register tiles:
// each task opens its panel anew.
int64_t rows_at_once(int64_t m, int64_t most, int64_t n) {
    int64_t rows = m < most ? m : most;
    while (rows > 16 * kMaxRows && panels(n) * (up(m, rows) / rows) < 2 * threads_for(1 << 20))
        rows = up((rows + 1) / 2, kMaxRows);
    return rows;
}

}  // namespace

EXPORT int32_t fewbit_abi() { return 11; }

// Of linear, float_linear, rows and attention, in this order.
EXPORT int64_t fewbit_task_bytes(int32_t index) {
    constexpr int64_t bytes[] = {sizeof(LinearTask), sizeof(FloatLinearTask), sizeof(RowsTask),
                                 sizeof(AttentionTask)};
    return bytes[index];
}

EXPORT int64_t fewbit_most_depth() { return kMostDepth; }

EXPORT int64_t fewbit_few_rows() { return kFewRows; }

EXPORT int32_t fewbit_supports(const char* name) { return supported(name) != nullptr; }

EXPORT void fewbit_choose(const char* name) { chosen = supported(name); }

EXPORT int32_t fewbit_has_float_linear(int32_t dtype) { return chosen->float_linear[dtype] != nullptr; }

EXPORT int32_t fewbit_has_attention(int32_t dtype) { return chosen->attention[dtype] != nullptr; }

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

static int32_t spans_of(const LinearTask& asked) {
    return asked.groups > asked.scale_groups ? asked.groups : asked.scale_groups;
}

static Linear laid_out(const LinearTask& asked) {
    return {asked, nullptr, up(asked.k, kDepth), spans_of(asked), 0, 0, nullptr};
}

static int32_t check(const LinearTask& asked) {
    if (!is_packed(asked.weight, asked.weight_bytes)) return kNotPacked;
    const Header& h = *reinterpret_cast<const Header*>(asked.weight);
    if (h.n != asked.n || h.k != asked.k) return kNotPacked;
    if (asked.factors && (h.bits != 4 || asked.k % (kDepth * asked.factor_groups))) return kNotPacked;
    const int32_t groups = asked.groups, by_row = asked.scale_groups, spans = spans_of(asked);
    if (by_row > 1 && by_row % groups) return kNotPacked;
    if (spans > 1 && asked.k % (kDepth * spans)) return kNotPacked;
    return asked.k / spans > kMostDepth ? kTooDeep : kDone;
}

static int64_t padded_bytes(const Linear& t) { return t.pitch == t.k ? 0 : up(t.m * t.pitch, 64); }

static int64_t input_bytes(const Linear& t) {
    return up(padded_bytes(t) + t.m * t.spans * int64_t(sizeof(int32_t)) + 64, 64);
}

static int64_t panel_scratch(const Linear& t) {
    return (t.spans + 1) * kPanel * int64_t(sizeof(float)) + opened_bytes(t.pitch);
}

// Codes padded to whole steps, and their sums, in `memory`.
static int32_t lay_input(Linear& task, uint8_t* memory) {
    const int64_t m = task.m, k = task.k, spans = task.spans, pitch = task.pitch;
    const int64_t padded = padded_bytes(task);
    if (padded) {
        std::memset(memory, 0, padded);
        for (int64_t i = 0; i < m; ++i) std::memcpy(memory + i * pitch, task.codes + i * k, k);
        task.codes = reinterpret_cast<const int8_t*>(memory);
    }
    int32_t* sums = reinterpret_cast<int32_t*>(memory + padded);
    task.sums = sums;
    const Kernels* kernels = chosen;
    constexpr int64_t kAtOnce = 64;  // many, because a row takes less than handing out a task
    std::atomic<int32_t> largest{0};
    int32_t status = for_each(up(m, kAtOnce) / kAtOnce, 64, [&](int64_t i, uint8_t*) {
        int32_t own = 0;
        int64_t end = (i + 1) * kAtOnce < m ? (i + 1) * kAtOnce : m;
        for (int64_t at = i * kAtOnce * spans; at < end * spans; ++at)
            sums[at] = kernels->sums(
                task.codes + at / spans * pitch + at % spans * (pitch / spans), pitch / spans, &own);
        for (int32_t seen = largest; own > seen && !largest.compare_exchange_weak(seen, own);) {
        }
    });
    task.largest = largest;
    return status;
}

EXPORT int32_t fewbit_linear(const LinearTask* asked) {
    Linear task = laid_out(*asked), side = task;
    const int64_t m = task.m, n = task.n;
    if (int32_t wrong = check(task)) return wrong;
    if (asked->side) {
        side = laid_out(*asked->side);
        if (int32_t wrong = check(side)) return wrong;
        if (side.m != m || side.n != n || side.spans != 1) return kNotPacked;
        task.beside = &side;
    }
    if (m == 0 || n == 0) return kDone;
    const int64_t own_bytes = input_bytes(task);
    uint8_t* memory = inputs.at_least(own_bytes + (task.beside ? input_bytes(side) : 0));
    if (!memory) return kNoMemory;
    if (int32_t status = lay_input(task, memory)) return status;
    if (task.beside)
        if (int32_t status = lay_input(side, memory + own_bytes)) return status;
    task.threads = threads_for(panels(n));
    const Kernels* kernels = chosen;
    const Packed packed(task.weight);
    int64_t rows = rows_at_once(m, kIntegerRows, n), count = panels(n);
    int64_t wanted = panel_scratch(task) + (task.beside ? panel_scratch(side) : 0);
    return for_each(count * (up(m, rows) / rows), wanted, [&](int64_t i, uint8_t* own) {
        int64_t row = i / count * rows;
        kernels->linear(task, packed, i % count, row, m - row < rows ? m - row : rows, own);
    });
}

EXPORT int32_t fewbit_float_linear(const FloatLinearTask* asked) {
    FloatLinear task = {*asked, asked->weight ? up(asked->k, kDepth) : asked->k};
    const int64_t m = task.m, n = task.n, k = task.k, pitch = task.pitch;
    auto kernel = chosen->float_linear[task.dtype];
    if (!kernel) return kNoKernel;
    if (task.weight && !is_packed(task.weight, task.weight_bytes)) return kNotPacked;
    alignas(Packed) unsigned char room[sizeof(Packed)];
    const Packed* packed = task.weight ? new (room) Packed(task.weight) : nullptr;
    if (packed && (packed->header->n != n || packed->header->k != k)) return kNotPacked;
    if (m == 0 || n == 0) return kDone;
    if (pitch != k) {
        const int64_t element = task.dtype == kBfloat16 ? 2 : 4;
        uint8_t* padded = inputs.at_least(m * pitch * element);
        if (!padded) return kNoMemory;
        for (int64_t i = 0; i < m; ++i) {
            std::memcpy(padded + i * pitch * element,
                        static_cast<const uint8_t*>(task.x) + i * k * element, k * element);
            std::memset(padded + (i * pitch + k) * element, 0, (pitch - k) * element);
        }
        task.x = padded;
    }
    int64_t rows = rows_at_once(m, kFloatRows[task.dtype], n), count = panels(n);
    int64_t wanted =
        int64_t(sizeof(float)) * kPanel * (task.groups + 1 + 2 * rows + kFloatDepth + kDepth);
    return for_each(count * (up(m, rows) / rows), wanted, [&](int64_t i, uint8_t* own) {
        int64_t row = i / count * rows;
        kernel(task, packed, i % count, row, m - row < rows ? m - row : rows,
               reinterpret_cast<float*>(own));
    });
}

// Of a row's integers, its components, and the sums of what these make; then of what is tried for its
// groups.
static int64_t last_floats(const RowsTask& t) {
    const int64_t split = t.directions ? 2 * up(t.k, 16) + up(t.rank, 16) : 0;
    const int64_t groups = t.group ? t.k / t.group : 0, scales = 1 + t.stretch_count;
    const int64_t tried = (3 + scales) * groups + scales * t.k / 4 + 64;
    return split > tried ? split : tried;
}

// Where padding to vectors costs least: how many matrices, and what the others have of columns.
static Rows divided(const RowsTask& asked) {
    Rows task = {asked, 1, 1, up(asked.k, 16), 0};
    if (!asked.signs) return task;
    for (int n = 0; n < task.count; ++n) task.order *= task.orders[n];
    int64_t least = INT64_MAX, columns = task.order;
    for (int n = 0; n < task.count; ++n) {
        int64_t padded = up(columns, 16) * up(task.k / columns, 16);
        if (padded < least) {
            least = task.space = padded;
            task.lead = n;
            task.last = columns;
        }
        columns /= task.orders[n];
    }
    return task;
}

EXPORT int32_t fewbit_rows(const RowsTask* asked) {
    const Rows task = divided(*asked);
    constexpr int64_t kAtOnce = 16;  // few, because a rotated row takes many times as long as it
    int64_t wanted = int64_t(sizeof(float)) * (2 * task.space + last_floats(task));
    const Kernels* kernels = chosen;
    return for_each(up(task.m, kAtOnce) / kAtOnce, wanted, [&](int64_t i, uint8_t* own) {
        for (int64_t row = i * kAtOnce; row < task.m && row < (i + 1) * kAtOnce; ++row)
            kernels->row(task, row, reinterpret_cast<float*>(own));
    });
}

EXPORT int32_t fewbit_gelu(const void* x, void* out, int64_t count, int32_t dtype) {
    constexpr int64_t kAtOnce = 1 << 14;  // 64 KiB of floats, in the second cache
    const Kernels* kernels = chosen;
    return for_each(up(count, kAtOnce) / kAtOnce, 64, [&](int64_t i, uint8_t*) {
        int64_t end = (i + 1) * kAtOnce < count ? (i + 1) * kAtOnce : count;
        kernels->gelu(x, out, i * kAtOnce, end, dtype);
    });
}

EXPORT int32_t fewbit_attention(const AttentionTask* asked) {
    const AttentionTask& t = *asked;
    auto kernel = chosen->attention[t.dtype];
    if (!kernel) return kNoKernel;
    int64_t wide = up(t.d, 16), padded = up(t.keys, kKeys);
    int64_t wanted = int64_t(sizeof(float)) *
                     (padded * (t.d + wide) + kQueries * (t.d + 2 * kKeys + wide + 2) + 64);
    return for_each(t.b * t.h, wanted, [&](int64_t i, uint8_t* own) { kernel(t, i, own); });
}
