// Plain C++: the reference of every other instruction set, and what runs where none of them does.
#include "kernels.h"

#define LANES 4
#define WIDEST 2
#define TILE_FLOATS 32

namespace fewbit {
namespace scalar {

#include "vec.inc"
#include "tile.inc"
#include "round.inc"
#include "rows.inc"

struct Opened {
    const uint8_t* bytes;
    int32_t offset;
};

static Opened open_panel(const Linear&, const Packed& w, int64_t panel, uint8_t* scratch);
static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc);

#include "factors.inc"
#include "plain_panel.inc"
#include "linear.inc"
#include "spans.inc"
#include "sums.inc"
#include "decode.inc"
#include "float_linear.inc"

static Opened open_panel(const Linear& t, const Packed& w, int64_t panel, uint8_t* scratch) {
    return {plain_panel(t, w, panel, scratch), opened_offset(t, w)};
}

static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc) {
    for (int64_t i = 0; i < rows * kPanel; ++i) acc[i] = 0;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < depth; ++k) {
            int32_t x = a[i * pitch + k];
            const uint8_t* row = w.bytes + (k0 + k) / 4 * 4 * kPanel + (k0 + k) % 4;
            for (int64_t j = 0; j < kPanel; ++j) acc[i * kPanel + j] += x * row[4 * j];
        }
}

}  // namespace scalar

const Kernels kScalar = {"scalar",
                         scalar::sums,
                         scalar::linear_kernel<scalar::dot_spans>,
                         {scalar::float_kernel<scalar::Floats>, nullptr},
                         scalar::row_kernel,
                         scalar::gelu_kernel,
                         {nullptr, nullptr}};

}  // namespace fewbit
