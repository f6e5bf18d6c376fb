// A recorded program: its tasks are copied, pointed to what a call brings, and planned as one.
#include "plan.h"

namespace fewbit {

namespace {

constexpr int64_t kKept = 64 << 20;  // bytes of workspace that a thread keeps from call to call

thread_local Memory workspace;

template <class Task>
const Task& at(const uint8_t* tasks, const Step& step) {
    return *reinterpret_cast<const Task*>(tasks + step.at);
}

// Twice, because codes may be laid out by the rows that make them and again for another reader.
int64_t memory_of(const uint8_t* tasks, const Program& program) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < program.step_count; ++i) {
        const Step& step = program.steps[i];
        if (step.operation == kLinear) bytes += 2 * Plan::input_bytes(at<LinearTask>(tasks, step));
        if (step.operation == kFloatLinear) bytes += Plan::input_bytes(at<FloatLinearTask>(tasks, step));
    }
    return bytes;
}

int32_t add(Plan& plan, const uint8_t* tasks, const Step& step, const Step* next) {
    switch (step.operation) {
        case kLinear: return plan.add(at<LinearTask>(tasks, step), step.waits);
        case kFloatLinear: return plan.add(at<FloatLinearTask>(tasks, step), step.waits);
        case kAttention: return plan.add(at<AttentionTask>(tasks, step), step.waits);
    }
    const bool read = next && next->operation == kLinear;
    return plan.add(at<RowsTask>(tasks, step), step.waits, read ? &at<LinearTask>(tasks, *next) : nullptr);
}

}  // namespace

int32_t run(const Program& program, uint8_t* const* pieces) {
    Memory own;
    uint8_t* space = (program.workspace > kKept ? own : workspace).at_least(program.workspace + 64);
    if (!space) return kNoMemory;
    std::vector<uint64_t> copy((program.bytes + 7) / 8);
    uint8_t* tasks = reinterpret_cast<uint8_t*>(copy.data());
    std::memcpy(tasks, program.tasks, program.bytes);
    for (int64_t i = 0; i < program.pointer_count; ++i) {
        const Pointer& pointer = program.pointers[i];
        uint8_t* base = pointer.base == kTasks ? tasks : pointer.base == kWorkspace ? space : pieces[pointer.base];
        uint8_t* to = base + pointer.offset;
        std::memcpy(tasks + pointer.at, &to, sizeof(to));
    }
    Plan plan(memory_of(tasks, program));
    for (int64_t i = 0; i < program.step_count; ++i) {
        const Step* next = i + 1 < program.step_count ? program.steps + i + 1 : nullptr;
        if (int32_t wrong = add(plan, tasks, program.steps[i], next)) return wrong;
    }
    return plan.run();
}

}  // namespace fewbit
