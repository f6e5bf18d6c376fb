// How a weight rests: a header that says everything, then panels of 64 output channels.
//
// 8 bits: [panel][k / 4][64 channels][4 k], each byte a level plus `offset`, so never negative.
// 4 bits: [panel][k / 8][64 channels][4 bytes]; the low nibbles are k 0..3, the high ones k 4..7,
// each a code that `table` turns into the byte above.
// 2 bits: [panel][k / 4][64 channels], each byte names one of 256 vectors of four bytes as above, which
// stand before the panels. Channels and k are padded to whole panels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbit {

constexpr int kPanel = 64;    // output channels of a panel
constexpr int kDepth = 8;     // k is padded to a multiple of this
constexpr int kVectors = 256;  // of a codebook
constexpr int kTables = 4;    // the most options of a FormatChoice
constexpr int kMaxRows = 6;   // of a tile of integers: 6 x 4 of 32 registers, or 6 x 2 of 16, hold sums
constexpr int kFewRows = 8;   // up to here the sums of a product of floats stay in registers
constexpr uint64_t kMagic = 0x31307061776d6266;  // "fbmwap01"

struct Header {
    uint64_t magic;
    int32_t bits;    // 2, 4 or 8
    int32_t n, k;    // as given, before padding
    int32_t tables;  // how many of `table` are in use (4 bits)
    int32_t offset;  // byte = level + offset
    int32_t top;     // the largest byte
    uint8_t table[kTables][16];
    uint8_t reserved[32];
};
static_assert(sizeof(Header) == 128, "the panels begin on a cache line");

inline int64_t up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Scratch of an open panel: the bytes, wider ones where those are needed, and rows as wide.
inline int64_t opened_bytes(int64_t pitch) { return up(pitch * (3 * kPanel + 2 * kMaxRows), 64); }

struct Packed {
    const Header* header;
    const uint8_t* choices;  // [padded n], which table a channel uses
    const uint8_t* panels;

    explicit Packed(const uint8_t* bytes)
        : header(reinterpret_cast<const Header*>(bytes)),
          choices(bytes + sizeof(Header)),
          panels(choices + choice_bytes(header->n, header->tables) + vector_bytes(header->bits)) {}

    static int64_t choice_bytes(int64_t n, int tables) { return tables > 1 ? up(n, kPanel) : 0; }

    static int64_t vector_bytes(int bits) { return bits == 2 ? 4 * kVectors : 0; }

    static int64_t panel_bytes(int64_t k, int bits) { return up(k, kDepth) * kPanel * bits / 8; }

    static int64_t bytes(int64_t n, int64_t k, int bits, int tables) {
        return int64_t(sizeof(Header)) + choice_bytes(n, tables) + vector_bytes(bits) +
               up(n, kPanel) / kPanel * panel_bytes(k, bits);
    }

    static bool is(const uint8_t* bytes, int64_t size) {
        if (size < int64_t(sizeof(Header))) return false;
        const Header& h = *reinterpret_cast<const Header*>(bytes);
        const bool known = h.bits == 2 || h.bits == 4 || h.bits == 8;
        return h.magic == kMagic && known && h.n >= 0 && h.k >= 0 && h.tables >= 0 &&
               h.tables <= kTables && size == Packed::bytes(h.n, h.k, h.bits, h.tables);
    }

    const uint8_t* panel(int64_t index) const {
        return panels + index * panel_bytes(header->k, header->bits);
    }

    const uint8_t* vectors() const { return panels - vector_bytes(header->bits); }

    const uint8_t* panel_choices(int64_t index) const { return choices + index * kPanel; }
};

}  // namespace fewbit
