// Operations as stages. A plan holds what its stages point to until they have run.
#pragma once

#include <deque>

#include "kernels.h"
#include "stages.h"

namespace fewbit {

inline int64_t panels(int64_t n) { return up(n, kPanel) / kPanel; }

class Plan {
   public:
    // `memory`: bytes for what is laid out before products; see `input_bytes`.
    explicit Plan(int64_t memory);

    // Each adds an operation, or says why it cannot run. Those who read the same codes without
    // anything in between share what is laid out for them.
    int32_t add(const LinearTask& task, bool waits = true);
    int32_t add(const FloatLinearTask& task, bool waits = true);
    int32_t add(const AttentionTask& task, bool waits = true);
    // A `reader` that comes next finds the codes laid out.
    int32_t add(const RowsTask& task, bool waits = true, const LinearTask* reader = nullptr);

    int32_t run() const;

    static int64_t input_bytes(const LinearTask& task);
    static int64_t input_bytes(const FloatLinearTask& task);

   private:
    int32_t open(const LinearTask& asked, Linear*& found);
    uint8_t* take(int64_t bytes);

    uint8_t *memory_, *free_;
    std::deque<Linear> linears_;
    std::deque<FloatLinear> float_linears_;
    std::deque<Rows> rows_;
    std::vector<Stage> stages_;
    const Linear* laid_ = nullptr;  // the last that was, unless another operation came since
};

// With what its pointers point to in this call.
int32_t run(const Program& program, uint8_t* const* pieces);

}  // namespace fewbit
