// Events between pipes, barriers, and what a block knows about itself.
#pragma once

#include "queue.h"

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

enum event_t : int32_t {
    EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7,
};

namespace AscendC {

template <HardEvent EVENT> twin::Flag &EventFlag(int32_t id)
{
    if (id < 0 || id >= twin::EVENT_IDS) {
        twin::Fail("event id %d is outside 0..%d", id, twin::EVENT_IDS - 1);
    }
    return twin::machine.flags[static_cast<int>(EVENT)][id];
}

template <HardEvent EVENT> void SetFlag(int32_t id, twin::At at = twin::At::Here())
{
    twin::machine.Enter("SetFlag", at);
    twin::Flag &flag = EventFlag<EVENT>(id);
    const twin::EventPipes ends = twin::PipesOf(static_cast<int>(EVENT));
    if (flag.set) {
        twin::Fail("event %s_%s %d is set a second time without WaitFlag",
                   twin::PipeName(ends.from), twin::PipeName(ends.to), id);
    }
    flag.set = true;
    flag.at = at;
    flag.snapshot = twin::machine.pipes.Snapshot(ends.from);
}

template <HardEvent EVENT> void WaitFlag(int32_t id, twin::At at = twin::At::Here())
{
    twin::machine.Enter("WaitFlag", at);
    twin::Flag &flag = EventFlag<EVENT>(id);
    const twin::EventPipes ends = twin::PipesOf(static_cast<int>(EVENT));
    if (!flag.set) {
        twin::Fail("hang: WaitFlag of event %s_%s %d, which nothing has set",
                   twin::PipeName(ends.from), twin::PipeName(ends.to), id);
    }
    flag.set = false;
    twin::Join(twin::machine.pipes.known[ends.to], flag.snapshot);
}

template <pipe_t PIPE> void PipeBarrier(twin::At at = twin::At::Here())
{
    static_assert(PIPE != PIPE_S, "the scalar pipe needs no barrier");
    twin::machine.Enter("PipeBarrier", at);
    if constexpr (PIPE == PIPE_ALL) {
        twin::machine.pipes.BarrierAll();
    } else {
        twin::machine.pipes.Barrier(static_cast<twin::Pipe>(PIPE));
    }
}

inline int64_t GetBlockIdx() { return twin::machine.Block(); }
inline int64_t GetBlockNum() { return twin::machine.blocks; }

} // namespace AscendC
