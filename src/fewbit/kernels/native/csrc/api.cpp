// The C functions that Python calls, and the choice of instruction set.
#include <cstring>

#ifdef __unix__
#include <pthread.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "crc32.h"
#include "plan.h"

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace fewbit;

namespace fewbit {

bool forked = false;
const Kernels* chosen = &kScalar;

}  // namespace fewbit

namespace {

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

}  // namespace

EXPORT int32_t fewbit_abi() { return 15; }

// In the order of `Operation`, then of a step, a pointer and a program.
EXPORT int64_t fewbit_task_bytes(int32_t index) {
    constexpr int64_t bytes[] = {sizeof(LinearTask), sizeof(FloatLinearTask), sizeof(RowsTask),
                                 sizeof(AttentionTask), sizeof(Step), sizeof(Pointer), sizeof(Program)};
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
    if (!Packed::is(bytes, size)) return kNotPacked;
    const Header& h = *reinterpret_cast<const Header*>(bytes);
    shape[0] = h.bits;
    shape[1] = h.n;
    shape[2] = h.k;
    return kDone;
}

// 2 bits: `codes` [n, k / 4] name vectors of `table`, int8 [256][4]. 4 bits: they are nibbles, and `table`
// is int8 [tables][16]. 8 bits: they are int8 levels.
EXPORT void fewbit_pack(const uint8_t* codes, const int8_t* table, const uint8_t* choices, int64_t n,
                        int64_t k, int32_t bits, int32_t tables, uint8_t* out) {
    std::memset(out, 0, Packed::bytes(n, k, bits, tables));
    Header& h = *reinterpret_cast<Header*>(out);
    h = {kMagic, bits, int32_t(n), int32_t(k), tables, 0, 0, {}, {}};
    const int8_t* levels = bits == 8 ? reinterpret_cast<const int8_t*>(codes) : table;
    int64_t count = bits == 8 ? n * k : bits == 4 ? tables * 16 : 4 * kVectors;
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
    for (int i = 0; bits == 2 && i < 4 * kVectors; ++i)
        const_cast<uint8_t*>(packed.vectors())[i] = uint8_t(table[i] - low);
    for (int64_t row = 0; bits == 2 && row < n; ++row)
        for (int64_t i = 0; i < k / 4; ++i)
            to[row / kPanel * panel_bytes + i * kPanel + row % kPanel] = codes[row * (k / 4) + i];
    for (int64_t row = 0; bits != 2 && row < n; ++row) {
        uint8_t* panel = to + row / kPanel * panel_bytes + row % kPanel * 4;
        for (int64_t i = 0; i < k; ++i) {
            uint8_t code = codes[row * k + i];
            if (bits == 4) panel[i / 8 * kPanel * 4 + i % 4] |= uint8_t((code & 15) << (i % 8 / 4 * 4));
            else panel[i / 4 * kPanel * 4 + i % 4] = uint8_t(int8_t(code) - low);
        }
    }
}

EXPORT int32_t fewbit_unpack(const uint8_t* bytes, int64_t size, uint8_t* codes) {
    if (!Packed::is(bytes, size)) return kNotPacked;
    Packed packed(bytes);
    const Header& h = *packed.header;
    for (int64_t row = 0; h.bits == 2 && row < h.n; ++row)
        for (int64_t i = 0; i < h.k / 4; ++i)
            codes[row * (h.k / 4) + i] = packed.panel(row / kPanel)[i * kPanel + row % kPanel];
    for (int64_t row = 0; h.bits != 2 && row < h.n; ++row) {
        const uint8_t* panel = packed.panel(row / kPanel) + row % kPanel * 4;
        for (int64_t i = 0; i < h.k; ++i)
            codes[row * h.k + i] =
                h.bits == 4 ? panel[i / 8 * kPanel * 4 + i % 4] >> (i % 8 / 4 * 4) & 15
                            : uint8_t(panel[i / 4 * kPanel * 4 + i % 4] - h.offset);
    }
    return kDone;
}

namespace {

using Listener = void (*)(int32_t operation, const void* task);
thread_local Listener listener = nullptr;

template <class Task>
int32_t run_alone(Operation operation, const Task& task, int64_t memory) {
    if (listener) listener(operation, &task);
    Plan plan(memory);
    if (int32_t wrong = plan.add(task)) return wrong;
    return plan.run();
}

}  // namespace

// Who hears the operations that this thread asks for, or null.
EXPORT void fewbit_listen(Listener who) { listener = who; }

EXPORT int32_t fewbit_linear(const LinearTask* task) {
    return run_alone(kLinear, *task, Plan::input_bytes(*task));
}

EXPORT int32_t fewbit_float_linear(const FloatLinearTask* task) {
    return run_alone(kFloatLinear, *task, Plan::input_bytes(*task));
}

EXPORT int32_t fewbit_rows(const RowsTask* task) { return run_alone(kRows, *task, 0); }

EXPORT int32_t fewbit_attention(const AttentionTask* task) { return run_alone(kAttention, *task, 0); }

EXPORT int32_t fewbit_gelu(const void* x, void* out, int64_t count, int32_t dtype) {
    constexpr int64_t kAtOnce = 1 << 14;  // 64 KiB of floats, in the second cache
    return run_stages({{up(count, kAtOnce) / kAtOnce, 0, [=](int64_t i, uint8_t*) {
                            int64_t end = (i + 1) * kAtOnce < count ? (i + 1) * kAtOnce : count;
                            chosen->gelu(x, out, i * kAtOnce, end, dtype);
                        }}});
}

EXPORT int32_t fewbit_run(const Program* program, uint8_t* const* pieces) {
    return run(*program, pieces);
}
