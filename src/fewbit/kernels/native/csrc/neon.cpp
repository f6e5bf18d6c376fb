// Arm with the dot product: signed times signed, so that no offset is needed.
#include <arm_neon.h>

#include "kernels.h"

#define LANES 4
#define WIDEST 4
#define TILE_FLOATS 96

namespace fewbit {
namespace neon {

#include "vec.inc"
#include "tile.inc"
#include "round.inc"
#include "rows.inc"
#include "attention.inc"

struct Opened {
    const int8_t* levels;  // [k / 4][64][4]
    int32_t offset;        // none is left
};

static Opened open_panel(const Linear&, const Packed& w, int64_t panel, uint8_t* scratch);
static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened w, int64_t k0, int64_t depth,
                int32_t* acc);

#include "linear.inc"
#include "spans.inc"
#include "factors.inc"
#include "plain_panel.inc"
#include "sums.inc"
#include "decode.inc"
#include "float_linear.inc"

static Opened open_panel(const Linear& t, const Packed& w, int64_t panel, uint8_t* scratch) {
    const uint8_t* bytes = plain_panel(t, w, panel, scratch);
    int8_t* levels = reinterpret_cast<int8_t*>(scratch);
    for (int64_t i = 0; i < up(w.header->k, kDepth) * kPanel; ++i)
        levels[i] = int8_t(bytes[i] - opened_offset(t, w));
    return {levels, 0};
}

template <int MR>
static inline void dot_strip(const int8_t* a, int64_t pitch, const int8_t* w, int64_t depth,
                             int32_t* out) {
    int32x4_t acc[MR][4];
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < 4; ++j) acc[i][j] = vdupq_n_s32(0);
    for (int64_t k = 0; k < depth; k += 4) {
        int8x16_t row[4];
        for (int j = 0; j < 4; ++j) row[j] = vld1q_s8(w + k * kPanel + 16 * j);
        for (int i = 0; i < MR; ++i) {
            int32_t four;
            __builtin_memcpy(&four, a + i * pitch + k, 4);
            int8x16_t codes = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int j = 0; j < 4; ++j) acc[i][j] = vdotq_s32(acc[i][j], row[j], codes);
        }
    }
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < 4; ++j) vst1q_s32(out + i * kPanel + 4 * j, acc[i][j]);
}

template <int MR>
static void dot_rows(const int8_t* a, int64_t pitch, const int8_t* w, int64_t depth, int32_t* acc) {
    for (int64_t channel = 0; channel < kPanel; channel += 16)
        dot_strip<MR>(a, pitch, w + channel * 4, depth, acc + channel);
}

static void dot(int64_t rows, const int8_t* a, int64_t pitch, Opened opened, int64_t k0,
                int64_t depth, int32_t* acc) {
    const int8_t* w = opened.levels + k0 * kPanel;
    if (rows == kMaxRows) return dot_rows<kMaxRows>(a, pitch, w, depth, acc);
    for (int64_t i = 0; i < rows; ++i)
        dot_rows<1>(a + i * pitch, pitch, w, depth, acc + i * kPanel);
}

}  // namespace neon

const Kernels kNeon = {"neon",
                       neon::sums,
                       neon::linear_kernel<neon::dot_spans>,
                       {neon::float_kernel<neon::Floats>, nullptr},
                       neon::row_kernel,
                       neon::gelu_kernel,
                       {neon::attention<neon::Fp32Attention>, nullptr}};

}  // namespace fewbit
