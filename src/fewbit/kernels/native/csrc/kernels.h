// What a kernel is given, and the table of kernels that each instruction set fills in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "panels.h"
#include "tasks.h"

// Of a tile: inlined, it would lose registers to the code around it and keep its sums in memory.
#define OWN_REGISTERS __attribute__((noinline))

namespace fewbit {

struct Linear : LinearTask {  // `codes` are [m, pitch], zeros beyond k
    const int8_t* given;     // [m, k]
    const int32_t* sums;     // [m, spans], of the codes
    int64_t pitch;
    int32_t spans;  // so many parts of k have one scale of the weight and one of the input
    int32_t threads;
    const int32_t* largest;  // of the codes' magnitudes, where an instruction set asks for it
    const Linear* beside;    // `side`, or null
};

struct FloatLinear : FloatLinearTask {  // `x` is [m, pitch], zeros beyond k
    int64_t pitch;
};

struct Rows : RowsTask {
    int64_t order, last, space;  // space: floats for a row, padded and turned
    int32_t lead;  // so many matrices mix axes of rows of `last` columns, the others of columns
};

// Indexed by Dtype where types differ; null where torch does as well.
struct Kernels {
    const char* name;
    void (*sums)(const int8_t* codes, int64_t spans, int64_t depth, int32_t* out, int32_t* largest);
    void (*linear)(const Linear&, const Packed&, int64_t panel, int64_t row, int64_t rows, uint8_t*);
    void (*float_linear[kDtypes])(const FloatLinear&, const Packed*, int64_t panel, int64_t row,
                                  int64_t rows, float*);
    void (*row)(const Rows&, int64_t row, float* scratch);
    void (*gelu)(const void* x, void* out, int64_t begin, int64_t end, int dtype);
    void (*attention[kDtypes])(const AttentionTask&, int64_t head, uint8_t* scratch);
};

// Sizes follow from caches, of 32 KiB and of 1 MiB, the smallest of CPUs with AVX-512.
constexpr int64_t kFloatDepth = 256;  // k decoded at a time: 64 KiB of floats for 64 channels
constexpr int64_t kKeys = 256;        // of one step of the softmax: its scores are 24 KiB
constexpr int64_t kQueries = 24;      // of one step: whole register tiles of 8, of 6 and of 4
// Rows for which one panel is opened. 512 rows of 1152 codes are 576 KiB; 128 of 1152 float32, with 512
// bytes of sums for each row, 640 KiB; 512 of bfloat16 1.4 MiB, for the 2 MiB of Sapphire Rapids.
constexpr int64_t kIntegerRows = 512;
constexpr int64_t kFloatRows[kDtypes] = {128, 512};

extern const Kernels* chosen;  // those in use

extern const Kernels kScalar;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;

// An extension that only some CPUs with AVX-512 have.
void float_linear_avx512bf16(const FloatLinear&, const Packed*, int64_t panel, int64_t row,
                             int64_t rows, float* scratch);
void attention_avx512bf16(const AttentionTask&, int64_t head, uint8_t* scratch);

}  // namespace fewbit
