// What this core can do at most: 24 independent chains of one instruction, in operations a second.
#include <immintrin.h>

#include <cstdio>
#include <ctime>

#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) \
    M(15) M(16) M(17) M(18) M(19) M(20) M(21) M(22) M(23)
#define CHAIN(i) __m512i a##i = _mm512_setzero_si512();
#define STEP(i) asm volatile(INSTRUCTION " %1, %1, %0" : "+v"(a##i) : "v"(x));
#define USE(i) asm volatile("" ::"v"(a##i));

static double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

int main() {
    constexpr long kTimes = 2000000;
    __m512i x = _mm512_setzero_si512();
    EACH(CHAIN)
    double start = seconds();
    for (long i = 0; i < kTimes; ++i) { EACH(STEP) }
    double taken = seconds() - start;
    EACH(USE)
    std::printf("%.3f\n", 24.0 * kTimes * OPERATIONS / taken * 1e-9);
}
