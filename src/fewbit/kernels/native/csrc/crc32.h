// CRC-32 as zlib has it, by carry-less multiplication. Bytes are a polynomial over two elements,
// the first bit its highest power, and the checksum is the remainder modulo kPolynomial: whatever
// stands D bits ahead may be replaced by its product with x^D modulo kPolynomial.
#pragma once
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#define FEWBIT_CARRYLESS __attribute__((target("pclmul")))
#include <immintrin.h>
#endif

namespace fewbit {
namespace crc32 {

constexpr uint32_t kPolynomial = 0xEDB88320;  // bit i belongs to x^(31 - i)

constexpr uint32_t times_x(uint32_t p) { return p >> 1 ^ (p & 1 ? kPolynomial : 0); }

inline uint32_t bit_by_bit(const uint8_t* bytes, int64_t size, uint32_t crc) {
    for (int64_t i = 0; i < size; ++i) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
    }
    return crc;
}

#ifdef FEWBIT_CARRYLESS
// x^(n - 1) in 64 bits: a product of two has 127 bits, so in 128 it stands one power too high.
constexpr int64_t factor(int n) {
    uint32_t p = 1u << 31;
    for (int i = 1; i < n; ++i) p = times_x(p);
    return int64_t(uint64_t(p) << 32);
}

FEWBIT_CARRYLESS inline __m128i load(const uint8_t* bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

template <int kBits>  // from the one to the other
FEWBIT_CARRYLESS inline __m128i fold(__m128i ahead, __m128i behind) {
    constexpr int64_t high = factor(kBits + 64), low = factor(kBits);
    const __m128i factors = _mm_set_epi64x(low, high);
    __m128i product = _mm_xor_si128(_mm_clmulepi64_si128(ahead, factors, 0x00),
                                    _mm_clmulepi64_si128(ahead, factors, 0x11));
    return _mm_xor_si128(product, behind);
}

// Four sums, each of every fourth 16 bytes: no product waits for another. `size` is at least 64.
FEWBIT_CARRYLESS inline uint32_t folded(const uint8_t* bytes, int64_t size, uint32_t crc) {
    const uint8_t* end = bytes + size;
    __m128i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = load(bytes + 16 * i);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(int32_t(crc)));
    for (bytes += 64; end - bytes >= 64; bytes += 64)
        for (int i = 0; i < 4; ++i) sums[i] = fold<512>(sums[i], load(bytes + 16 * i));
    for (int i = 1; i < 4; ++i) sums[i] = fold<128>(sums[i - 1], sums[i]);
    uint8_t rest[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), sums[3]);
    return bit_by_bit(bytes, end - bytes, bit_by_bit(rest, 16, 0));
}
#endif

inline bool is_fast() {
#ifdef FEWBIT_CARRYLESS
    return __builtin_cpu_supports("pclmul");
#else
    return false;
#endif
}

// `crc` is that of what came before.
inline uint32_t update(uint32_t crc, const uint8_t* bytes, int64_t size) {
#ifdef FEWBIT_CARRYLESS
    if (size >= 64 && is_fast()) return ~folded(bytes, size, ~crc);
#endif
    return ~bit_by_bit(bytes, size, ~crc);
}

}  // namespace crc32
}  // namespace fewbit
