// How each operation is split into tasks.
#include "plan.h"

#include <new>

namespace fewbit {

namespace {

thread_local Memory inputs;

// Fewer rows at once where that gives every thread two tasks, but no fewer than 16 register tiles:
// each task opens its panel anew.
int64_t rows_at_once(int64_t m, int64_t most, int64_t n) {
    int64_t rows = m < most ? m : most;
    while (rows > 16 * kMaxRows && panels(n) * (up(m, rows) / rows) < 2 * threads_for(1 << 20))
        rows = up((rows + 1) / 2, kMaxRows);
    return rows;
}

bool is_packed(const uint8_t* bytes, int64_t size, int64_t n, int64_t k) {
    if (!Packed::is(bytes, size)) return false;
    const Header& h = *reinterpret_cast<const Header*>(bytes);
    return h.n == n && h.k == k;
}

int32_t spans_of(const LinearTask& asked) {
    return asked.groups > asked.scale_groups ? asked.groups : asked.scale_groups;
}

Linear laid_out(const LinearTask& asked) {
    const int64_t pitch = up(asked.k, kDepth);
    return {asked, asked.codes, nullptr, pitch, spans_of(asked), threads_for(panels(asked.n)), nullptr,
            nullptr};
}

int32_t check(const LinearTask& asked) {
    if (!is_packed(asked.weight, asked.weight_bytes, asked.n, asked.k)) return kNotPacked;
    const Header& h = *reinterpret_cast<const Header*>(asked.weight);
    if (asked.factors && (h.bits != 4 || asked.k % (kDepth * asked.factor_groups))) return kNotPacked;
    const int32_t groups = asked.groups, by_row = asked.scale_groups, spans = spans_of(asked);
    if (by_row > 1 && by_row % groups) return kNotPacked;
    if (spans > 1 && asked.k % (kDepth * spans)) return kNotPacked;
    return asked.k / spans > kMostDepth ? kTooDeep : kDone;
}

int64_t padded_bytes(const Linear& t) { return t.pitch == t.k ? 0 : up(t.m * t.pitch, 64); }

int64_t own_bytes(const Linear& t) {
    return up(padded_bytes(t) + (t.m * t.spans + 1) * int64_t(sizeof(int32_t)) + 64, 64);
}

int64_t panel_scratch(const Linear& t) {
    return (t.spans + 1) * kPanel * int64_t(sizeof(float)) + opened_bytes(t.pitch);
}

void note_largest(int32_t* largest, int32_t own) {
    int32_t seen = __atomic_load_n(largest, __ATOMIC_RELAXED);
    while (own > seen && !__atomic_compare_exchange_n(largest, &seen, own, false, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
    }
}

// Rows of codes padded to whole steps, and their sums, where the task has memory for them.
void lay(const Linear& t, int64_t begin, int64_t end) {
    const int64_t k = t.k, pitch = t.pitch;
    if (pitch != k) {
        uint8_t* padded = reinterpret_cast<uint8_t*>(const_cast<int8_t*>(t.codes));
        for (int64_t i = begin; i < end; ++i) {
            std::memcpy(padded + i * pitch, t.given + i * k, k);
            std::memset(padded + i * pitch + k, 0, pitch - k);
        }
    }
    int32_t own = 0, *sums = const_cast<int32_t*>(t.sums);
    for (int64_t i = begin; i < end; ++i)
        chosen->sums(t.codes + i * pitch, t.spans, pitch / t.spans, sums + i * t.spans, &own);
    note_largest(const_cast<int32_t*>(t.largest), own);
    if (t.beside) lay(*t.beside, begin, end);
}

int64_t last_of(int64_t task, int64_t at_once, int64_t count) {
    return (task + 1) * at_once < count ? (task + 1) * at_once : count;
}

// Of a row's integers, its components, and the sums of what these make; then of what is tried for its
// groups.
int64_t last_floats(const RowsTask& t) {
    const int64_t split = t.directions ? 2 * up(t.k, 16) + up(t.rank, 16) : 0;
    const int64_t groups = t.group ? t.k / t.group : 0, scales = 1 + t.stretch_count;
    const int64_t tried = (4 + scales) * groups + scales * t.k / 4 + 64;
    return split > tried ? split : tried;
}

// Where padding to vectors costs least: how many matrices, and what the others have of columns.
Rows divided(const RowsTask& asked) {
    Rows task = {asked, 1, 1, up(asked.k, 16), 0};
    if (!asked.signs) return task;
    for (int n = 0; n < task.count; ++n) task.order *= task.orders[n];
    int64_t least = INT64_MAX, columns = task.order;
    for (int n = 0; n < task.count; ++n) {
        int64_t padded = up(columns, 16) * up(task.k / columns, 16);
        if (padded < least) {
            least = task.space = padded;
            task.lead = n;
            task.last = columns;
        }
        columns /= task.orders[n];
    }
    return task;
}

}  // namespace

Plan::Plan(int64_t memory) : memory_(inputs.at_least(memory + 64)), free_(memory_) {}

uint8_t* Plan::take(int64_t bytes) {
    uint8_t* taken = free_;
    free_ += up(bytes, 64);
    return taken;
}

int64_t Plan::input_bytes(const LinearTask& task) {
    return own_bytes(laid_out(task)) + (task.side ? own_bytes(laid_out(*task.side)) : 0);
}

int64_t Plan::input_bytes(const FloatLinearTask& task) {
    const int64_t element = task.dtype == kBfloat16 ? 2 : 4;
    return task.weight && task.k % kDepth ? up(task.m * up(task.k, kDepth) * element, 64) : 0;
}

// The task with memory for its codes and sums, and that of the product beside it.
int32_t Plan::open(const LinearTask& asked, Linear*& found) {
    if (int32_t wrong = check(asked)) return wrong;
    linears_.push_back(laid_out(asked));
    Linear& task = linears_.back();
    if (asked.side) {
        Linear* side;
        if (int32_t wrong = open(*asked.side, side)) return wrong;
        if (side->m != task.m || side->n != task.n || side->spans != 1) return kNotPacked;
        task.beside = side;
    }
    if (padded_bytes(task)) task.codes = reinterpret_cast<const int8_t*>(take(padded_bytes(task)));
    task.sums = reinterpret_cast<const int32_t*>(take((task.m * task.spans + 1) * sizeof(int32_t)));
    int32_t* largest = const_cast<int32_t*>(task.sums) + task.m * task.spans;
    *largest = 0;
    task.largest = largest;
    found = &task;
    return kDone;
}

static bool reads_the_same(const Linear* a, const Linear* b) {
    if (!a || !b) return a == b;
    return a->given == b->given && a->codes == b->codes && a->m == b->m && a->k == b->k &&
           a->spans == b->spans && reads_the_same(a->beside, b->beside);
}

static void share(Linear& task, const Linear& laid) {
    task.sums = laid.sums;
    task.largest = laid.largest;
    if (task.beside) share(const_cast<Linear&>(*task.beside), *laid.beside);
}

int32_t Plan::add(const LinearTask& asked, bool waits) {
    if (!memory_) return kNoMemory;
    Linear* found;
    if (int32_t wrong = open(asked, found)) return wrong;
    const Linear& task = *found;
    const int64_t m = task.m, n = task.n;
    if (m == 0 || n == 0) return kDone;
    if (laid_ && reads_the_same(laid_, found)) {
        share(*found, *laid_);
    } else {
        constexpr int64_t kAtOnce = 64;  // many, because a row takes less than handing out a task
        stages_.push_back({up(m, kAtOnce) / kAtOnce, 0, [&task](int64_t i, uint8_t*) {
                               lay(task, i * kAtOnce, last_of(i, kAtOnce, task.m));
                           }, waits});
        waits = true;
        laid_ = found;
    }
    const Packed packed(task.weight);
    const int64_t rows = rows_at_once(m, kIntegerRows, n), count = panels(n);
    const int64_t scratch = panel_scratch(task) + (task.beside ? panel_scratch(*task.beside) : 0);
    stages_.push_back({count * (up(m, rows) / rows), scratch, [=, &task](int64_t i, uint8_t* own) {
                           const int64_t row = i / count * rows;
                           const int64_t some = m - row < rows ? m - row : rows;
                           chosen->linear(task, packed, i % count, row, some, own);
                       }, waits});
    return kDone;
}

int32_t Plan::add(const FloatLinearTask& asked, bool waits) {
    if (!memory_) return kNoMemory;
    laid_ = nullptr;
    float_linears_.push_back({asked, asked.weight ? up(asked.k, kDepth) : asked.k});
    FloatLinear& task = float_linears_.back();
    const int64_t m = task.m, n = task.n, k = task.k, pitch = task.pitch;
    auto kernel = chosen->float_linear[task.dtype];
    if (!kernel) return kNoKernel;
    if (task.weight && !is_packed(task.weight, task.weight_bytes, n, k)) return kNotPacked;
    if (task.weight && Packed(task.weight).header->bits == 2) return kNoKernel;
    if (m == 0 || n == 0) return kDone;
    if (pitch != k) {
        const int64_t element = task.dtype == kBfloat16 ? 2 : 4;
        const uint8_t* from = static_cast<const uint8_t*>(task.x);
        uint8_t* padded = take(m * pitch * element);
        stages_.push_back({m, 0, [=](int64_t i, uint8_t*) {
                               uint8_t* to = padded + i * pitch * element;
                               std::memcpy(to, from + i * k * element, k * element);
                               std::memset(to + k * element, 0, (pitch - k) * element);
                           }, waits});
        waits = true;
        task.x = padded;
    }
    const int64_t rows = rows_at_once(m, kFloatRows[task.dtype], n), count = panels(n);
    const int64_t floats = kPanel * (task.groups + 1 + 2 * rows + kFloatDepth + kDepth);
    const FloatLinear* given = &task;
    stages_.push_back({count * (up(m, rows) / rows), int64_t(sizeof(float)) * floats,
                       [=](int64_t i, uint8_t* own) {
                           alignas(Packed) unsigned char room[sizeof(Packed)];
                           const Packed* packed = given->weight ? new (room) Packed(given->weight) : nullptr;
                           const int64_t row = i / count * rows;
                           kernel(*given, packed, i % count, row, m - row < rows ? m - row : rows,
                                  reinterpret_cast<float*>(own));
                       }, waits});
    return kDone;
}

int32_t Plan::add(const RowsTask& asked, bool waits, const LinearTask* reader) {
    if (!memory_) return kNoMemory;
    laid_ = nullptr;
    rows_.push_back(divided(asked));
    const Rows& task = rows_.back();
    const Linear* laid = nullptr;
    if (reader && reader->codes == asked.codes && reader->m == asked.m && reader->k % kDepth == 0 &&
        (!reader->side || (reader->side->codes == asked.aside && reader->side->k % kDepth == 0))) {
        Linear* found;
        if (int32_t wrong = open(*reader, found)) return wrong;
        laid = laid_ = found;
    }
    constexpr int64_t kAtOnce = 16;  // few, because a rotated row takes many times as long as it
    const int64_t floats = 2 * task.space + last_floats(task);
    stages_.push_back({up(task.m, kAtOnce) / kAtOnce, int64_t(sizeof(float)) * floats,
                       [=, &task](int64_t i, uint8_t* own) {
                           const int64_t end = last_of(i, kAtOnce, task.m);
                           for (int64_t row = i * kAtOnce; row < end; ++row)
                               chosen->row(task, row, reinterpret_cast<float*>(own));
                           if (laid) lay(*laid, i * kAtOnce, end);
                       }, waits});
    return kDone;
}

int32_t Plan::add(const AttentionTask& t, bool waits) {
    laid_ = nullptr;
    auto kernel = chosen->attention[t.dtype];
    if (!kernel || (t.by_row && t.d > kMostHead)) return kNoKernel;
    const int64_t wide = up(t.d, 16), padded = up(t.keys, kKeys);
    const int64_t rounded = t.steps || t.by_row ? padded + kQueries + t.keys * t.d : 0;
    const int64_t floats = padded * (t.d + wide) + kQueries * (t.d + 2 * kKeys + wide + 2) + rounded + 64;
    stages_.push_back({t.b * t.h, int64_t(sizeof(float)) * floats,
                       [=](int64_t i, uint8_t* own) { kernel(t, i, own); }, waits});
    return kDone;
}

int32_t Plan::run() const { return run_stages(stages_); }

}  // namespace fewbit
