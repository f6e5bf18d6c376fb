// Work in stages. A stage is so many tasks, which the threads take one by one; the next stage begins
// when all have ended, unless it does not wait.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "panels.h"

namespace fewbit {

enum Status : int32_t { kDone = 0, kNoMemory = 1, kNotPacked = 2, kTooDeep = 3, kNoKernel = 4 };

struct Memory {  // of one thread, kept from call to call
    void* bytes = nullptr;
    int64_t size = 0;

    uint8_t* at_least(int64_t wanted) {
        if (wanted > size) {
            std::free(bytes);
            size = up(wanted, 4096);
            bytes = std::aligned_alloc(64, size);
            if (!bytes) size = 0;
        }
        return static_cast<uint8_t*>(bytes);
    }

    ~Memory() { std::free(bytes); }
};

struct Stage {
    int64_t tasks, scratch;  // scratch: bytes of each thread
    std::function<void(int64_t task, uint8_t* scratch)> run;
    bool waits = true;  // for the stages before it
};

extern bool forked;  // a forked child has none of its parent's threads and would wait for ever

inline int threads_for(int64_t tasks) {
#ifdef _OPENMP
    int most = forked || omp_in_parallel() ? 1 : omp_get_max_threads();
    return int(tasks < most ? (tasks > 0 ? tasks : 1) : most);
#else
    (void)tasks;
    return 1;
#endif
}

inline int32_t run_stages(const std::vector<Stage>& stages) {
    static thread_local Memory scratch;
    int64_t most = 0, bytes = 64;
    for (const Stage& stage : stages) {
        most = stage.tasks > most ? stage.tasks : most;
        bytes = stage.scratch > bytes ? stage.scratch : bytes;
    }
    int threads = threads_for(most);
    if (threads == 1) {
        uint8_t* memory = scratch.at_least(bytes);
        if (!memory) return kNoMemory;
        for (const Stage& stage : stages)
            for (int64_t i = 0; i < stage.tasks; ++i) stage.run(i, memory);
        return kDone;
    }
    std::atomic<int32_t> status{kDone};
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        uint8_t* memory = scratch.at_least(bytes);
        if (!memory) status = kNoMemory;
        for (const Stage& stage : stages) {
            if (stage.waits) {
#pragma omp barrier
            }
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t i = 0; i < stage.tasks; ++i)
                if (memory) stage.run(i, memory);
        }
    }
#endif
    return status;
}

}  // namespace fewbit
