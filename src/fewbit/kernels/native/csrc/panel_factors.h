// Scales and bias of the panel, the padding channels zero: [groups][64], then [64].
static void panel_factors(const float* scales, const float* bias, int64_t n, int64_t groups,
                          int64_t panel, float* out) {
    for (int64_t g = 0; g <= groups; ++g)
        for (int64_t i = 0; i < kPanel; ++i) {
            int64_t channel = panel * kPanel + i;
            float value = 0;
            if (channel < n)
                value = g < groups ? (scales ? scales[channel * groups + g] : 1.0f)
                                   : (bias ? bias[channel] : 0.0f);
            out[g * kPanel + i] = value;
        }
}
