// The C interface: one plain struct for each operation. library.py declares the same structs, and
// compares their sizes with these when it loads the library.
#pragma once

#include <cstdint>

namespace fewbit {

constexpr int kMatrices = 16;  // the most factors of a rotation

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kDtypes = 2 };

// The most columns of one group. A product of codes is summed in int32, and what is summed is a code
// of a magnitude of at most 128 times a byte (a level plus its offset) of at most 255.
constexpr int64_t kMostDepth = INT32_MAX / (128 * 255);

struct LinearTask {  // integers times integers
    const int8_t* codes;         // [m, k]
    const float* scales;         // [m, scale_groups]
    const uint8_t* weight;       // packed, of `weight_bytes` bytes
    const uint8_t* factors;      // [n, factor_groups] or null: of the levels, which rest in 4 bits
    const float* weight_scales;  // [n, groups]
    const float* bias;           // [n] or null
    const float* common;         // [m / sharing, n] or null: what rows of an image get for a bias
    const float* gate;           // [m / tokens, n] or null: a result is residual + gate * it
    const void* residual;        // [m, n], of the type of the results
    void* out;                   // [m, n]
    int64_t weight_bytes, m, n, k, tokens, sharing;
    int32_t factor_groups, groups, scale_groups, gelu, out_dtype;
    const LinearTask* side;      // a product of the same size that is added to the results, or null:
};                               // of one group, and nothing is done to its own

struct FloatLinearTask {  // floats times a weight that is decoded, or looked up in a codebook
    const void* x;               // [m, k]; bfloat16 only where there is such a kernel
    const uint8_t* weight;       // packed, of `weight_bytes` bytes, or null: a codebook
    const uint8_t* assignments;  // [n, k / d], which entry of the codebook each vector is
    const void* codebook;        // [entries, d], of the type of x
    const float* weight_scales;  // [n, groups] or null
    const float* bias;           // [n] or null
    void* out;                   // [m, n]
    int64_t weight_bytes, m, n, k, d;
    int32_t groups, dtype, out_dtype;
};

// How a scale of a group is kept; the last two under an outer scale of their row.
enum ScaleKind : int32_t { kFloatScale = 0, kPowerOfTwo = 1, kE4m3 = 2, kFactor = 3 };

constexpr int64_t kMostGroup = 256;  // columns of a group of rows
constexpr int64_t kMostHead = 512;   // columns of a row of attention that is rounded by itself

struct RowsTask {  // what is done to every row before a product
    const void* x;          // [m, k]
    const float* shift;     // [m / tokens, k] or null: no layer norm
    const float* scale;     // [m / tokens, k]
    const float* signs;     // [k] or null: no rotation
    const float* matrices;  // each transposed, from left to right in the Kronecker product
    const float* mean;      // [m / tokens, k] or null: taken off the rows of its image
    const float* ladder;    // [2][16] or null: the format is not arithmetic, see rows.inc
    const float* stretches; // [stretch_count], of the scale of a group, of which the best is taken
    int8_t* codes;          // [m, k] or null: no quantizer
    float* scales;          // [m], or of each group [m, k / group] if it is no factor
    void* out;              // [m, k], the floats, where there are no codes
    const int8_t* directions;  // [rank, k] or null: what is left of a row goes on, and to `aside`
    const float* squares;      // [rank], the sum of squares of each
    int8_t* aside;             // [m, rank], the components along them
    float* aside_scales;       // [m]
    const float* smooth;       // [k] or null: rows are divided by it before they are rotated
    const float* steps;        // [regions][m / sharing] or null: scales are fit to each row
    int64_t m, k, tokens, rank, group;  // group: columns that share a scale, or 0: all of a row
    int64_t sharing, whole;    // rows that share a step; the columns that have one region of two
    int32_t orders[kMatrices];
    int32_t count, dtype, mantissa;  // count: of the matrices
    int32_t scale_kind, stretch_count, regions;  // regions: 1, or 2, with codes and scales [2 m]
    float norm, top, step, smallest_normal, zero;  // zero: the scale of a row of zeros
    float bottom, most_factor;
    double eps;
};

struct Regions {  // of attention weights: `most_low` fine levels, coarse ones beyond `split`
    float low, per_low, most_low, high, per_high, least_high, most_high, split;
};

struct AttentionTask {
    const void *q, *k, *v;   // strides in elements, the last dimension is contiguous
    const float* mask;       // added; null where there is none
    const Regions* regions;  // the weights are rounded, of each image or of all; or null
    const float* steps;      // [3][images][h], of q, k and v, which are rounded to them; or null
    void* out;               // [b, queries, h, d]
    int64_t b, h, queries, keys, d;
    int64_t q_stride[3], k_stride[3], v_stride[3], mask_stride[4];
    int32_t dtype, many_regions, step_images;  // step_images: b, or 1 for all
    int32_t by_row, mantissa;  // by_row: each row of q, k and v is rounded by its largest magnitude
    float scale, bottom, top, step, smallest_normal, zero;  // of the format that they are rounded to
};

// Operations one after another as one: what a part of a model was recorded to do.
enum Operation : int32_t { kLinear = 0, kFloatLinear = 1, kRows = 2, kAttention = 3 };

struct Step {
    int64_t at;  // of its task, in bytes
    int32_t operation;
    int32_t waits;  // for the steps before it
};

struct Pointer {  // in a task, to something that lies elsewhere in each call
    int64_t at;      // in bytes
    int64_t base;    // which of the call's pieces of memory, or one of those below
    int64_t offset;  // in bytes
};

constexpr int64_t kTasks = -1;      // the tasks themselves
constexpr int64_t kWorkspace = -2;  // what lives no longer than the program runs

struct Program {
    const uint8_t* tasks;
    const Step* steps;
    const Pointer* pointers;
    int64_t bytes, step_count, pointer_count, workspace;  // workspace: bytes of it
};

}  // namespace fewbit
