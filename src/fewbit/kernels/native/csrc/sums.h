// The sum of a row's codes, and the largest magnitude seen.
static int32_t sums(const int8_t* codes, int64_t depth, int32_t* largest) {
    int32_t total = 0, high = *largest, low = -*largest;
    for (int64_t i = 0; i < depth; ++i) {
        int32_t x = codes[i];
        total += x;
        high = x > high ? x : high;
        low = x < low ? x : low;
    }
    *largest = -low > high ? -low : high;
    return total;
}
