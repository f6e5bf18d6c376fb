// What a kernel is asked to do, and the table of kernels that each instruction set fills in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "panels.h"

namespace fewbit {

constexpr int kMatrices = 16;  // the most factors of a rotation

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1 };

struct Linear {  // integers times integers
    const int8_t* codes;        // [m, pitch], zeros beyond k
    const float* scales;        // [m, scale_groups]
    const int32_t* sums;        // [m, groups], of the codes
    const float* weight_scales; // [n, groups]
    const float* bias;          // [n] or null
    const float* gate;          // [m / tokens, n] or null: a result is residual + gate * it
    const void* residual;       // [m, n], of the type of the results
    void* out;                  // [m, n]
    int64_t m, pitch, tokens;
    int32_t scale_groups, groups, largest;  // largest: of the codes' magnitudes
    int32_t gelu, out_dtype, threads;
};

struct FloatLinear {  // floats times a weight that is decoded in the panel
    const void* x;              // [m, pitch], zeros beyond k
    const float* weight_scales; // [n, groups] or null
    const float* bias;          // [n] or null
    void* out;                  // [m, n]
    const uint8_t* assignments; // [n, k / d], when the weight is a codebook
    const void* codebook;       // [entries, d], of the type of x
    int64_t m, n, k, pitch, d;
    int32_t groups, out_dtype;
};

struct Rows {  // what is done to every row before a product
    const void* x;              // [m, k]
    const float* shift;         // [m / tokens, k] or null: no layer norm
    const float* scale;         // [m / tokens, k]
    const float* signs;         // [k] or null: no rotation
    const float* matrices;      // each transposed, from left to right in the Kronecker product
    int32_t orders[kMatrices];
    int32_t count, lead;        // so many mix axes of rows of `last` columns, the others of columns
    int64_t order, last, space; // space: floats for a row, padded and turned
    int8_t* codes;              // [m, k] or null: no quantizer
    float* scales;              // [m, groups]
    void* out;                  // [m, k], the floats, where there are no codes
    int64_t m, k, tokens;
    int32_t groups, dtype, mantissa;
    float norm, top, step, smallest_normal;
    double eps;
};

struct Regions {  // of shares: `most_low` fine levels, coarse ones beyond `split`
    float low, per_low, most_low, high, per_high, least_high, most_high, split;
};

struct Attention {
    const void *q, *k, *v;      // strides in elements, the last dimension is contiguous
    const float* mask;          // added; null where there is none
    const Regions* regions;     // the shares are rounded, of each image or of all; or null
    void* out;                  // [b, queries, h, d]
    int64_t b, h, queries, keys, d;
    int64_t q_stride[3], k_stride[3], v_stride[3], mask_stride[4];
    int32_t dtype, many_regions;
    float scale;
};

struct Kernels {  // attention is null where SDPA does as well
    const char* name;
    int32_t (*sums)(const int8_t* codes, int64_t depth, int32_t* largest);
    void (*linear)(const Linear&, const Packed&, int64_t panel, int64_t row, int64_t rows, uint8_t*);
    void (*float_linear)(const FloatLinear&, const Packed*, int64_t panel, int64_t row, int64_t rows,
                         float*);
    void (*row)(const Rows&, int64_t row, float* scratch);
    void (*gelu)(const void* x, void* out, int64_t begin, int64_t end, int dtype);
    void (*attention_fp32)(const Attention&, int64_t head, uint8_t* scratch);
};

constexpr int64_t kFloatDepth = 256;  // k decoded to floats at a time
constexpr int64_t kKeys = 256;        // keys of one step of the softmax
constexpr int64_t kQueries = 24;      // queries of one step
constexpr int64_t kIntegerRows = 512; // rows for which one panel is opened
constexpr int64_t kFloatRows = 128;
constexpr int64_t kHalfRows = 512;
constexpr int64_t kSumsAtOnce = 64;   // rows that one task adds up

extern const Kernels kScalar;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kNeon;
#ifdef FEWBIT_AVX512BF16
void attention_avx512bf16(const Attention&, int64_t head, uint8_t* scratch);
void float_linear_avx512bf16(const FloatLinear&, const Packed*, int64_t panel, int64_t row,
                             int64_t rows, float* scratch);
#endif

}  // namespace fewbit
