// The bytes of a panel, [k / 4][64][4], offset and never negative.
static const uint8_t* plain_panel(const Packed& w, int64_t panel, uint8_t* scratch) {
    const Header& h = *w.header;
    if (h.bits == 8) return w.panel(panel);
    const uint8_t* packed = w.panel(panel);
    const uint8_t* choices = w.panel_choices(panel);
    for (int64_t group = 0; group < up(h.k, kDepth) / kDepth; ++group)
        for (int64_t channel = 0; channel < kPanel; ++channel) {
            const uint8_t* table = h.table[h.tables > 1 ? choices[channel] : 0];
            for (int64_t i = 0; i < 4; ++i) {
                uint8_t byte = packed[(group * kPanel + channel) * 4 + i];
                uint8_t* out = scratch + group * 8 * kPanel + channel * 4 + i;
                out[0] = table[byte & 15];
                out[4 * kPanel] = table[byte >> 4];
            }
        }
    return scratch;
}
