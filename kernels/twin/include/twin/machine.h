// The state of a run: one vector core, used by one block after the other, and the global memory.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "memory.h"

namespace AscendC {

enum class HardEvent : uint8_t {
    S_V, S_MTE2, S_MTE3, V_S, V_MTE2, V_MTE3,
    MTE2_S, MTE2_V, MTE2_MTE3, MTE3_S, MTE3_V, MTE3_MTE2,
};

enum class TPosition : uint8_t { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;

} // namespace AscendC

namespace twin {

constexpr int HARD_EVENTS = 12;
constexpr int EVENT_IDS = 8;
constexpr uint32_t SHORT_BURST = 512; // bytes; below it a DMA wastes bandwidth

struct EventPipes {
    Pipe from, to;
};

inline EventPipes PipesOf(int event)
{
    static constexpr EventPipes table[HARD_EVENTS] = {
        {S, V}, {S, MTE2}, {S, MTE3}, {V, S}, {V, MTE2}, {V, MTE3},
        {MTE2, S}, {MTE2, V}, {MTE2, MTE3}, {MTE3, S}, {MTE3, V}, {MTE3, MTE2},
    };
    return table[event];
}

struct Flag {
    bool reserved = false; // by AllocEventID
    bool set = false;
    Clock snapshot{};
    At at{"", 0};
};

// A piece of UB given out by InitBuffer: one tensor of a queue, or a TBuf.
struct Buffer {
    enum State : uint8_t { FREE, ALLOCATED, QUEUED, DEQUEUED, ALWAYS };
    AscendC::TPosition position = AscendC::TPosition::VECCALC;
    State state = FREE;
    Pipe fills = V, takes = V;
    uint32_t offset = 0, size = 0;
    uint32_t generation = 0; // raised by AllocTensor: an older tensor is a stale one
    int queue = -1;
    Clock filled{}, released{};
};

inline const char *PositionName(AscendC::TPosition position)
{
    static const char *const names[] = {"GM", "VECIN", "VECOUT", "VECCALC"};
    return names[static_cast<int>(position)];
}

struct Counts {
    uint64_t instructions[PIPES] = {};
    uint64_t vector_repeats = 0; // 256 bytes of the widest operand each: what the pipe is busy with
    uint64_t dma = 0, bursts = 0, short_bursts = 0;
    uint64_t bytes_in = 0, bytes_out = 0;
    uint64_t ub_peak = 0;
};

class Machine {
public:
    Pipes pipes;
    UnifiedBuffer ub;
    std::vector<std::unique_ptr<Region>> regions;
    std::vector<Buffer> buffers;
    Flag flags[HARD_EVENTS][EVENT_IDS];
    Counts counts;
    int blocks = 1;
    int queues = 0;
    uint32_t ub_used = 0;

    int Block() const { return position.block; }

    void Begin(int block)
    {
        position.block = block;
        position.call = "start";
        position.at = {"", 0};
        pipes.Reset();
        ub.Reset();
        buffers.clear();
        std::fill(&flags[0][0], &flags[0][0] + HARD_EVENTS * EVENT_IDS, Flag{});
        queues = 0;
        ub_used = 0;
    }

    // Every API call comes by here first, so that a fault can name it.
    static void Enter(const char *call, At at)
    {
        position.call = call;
        position.at = at;
    }

    void Issue(Pipe pipe, const char *call, At at)
    {
        Enter(call, at);
        pipes.Issue(pipe, call, at);
        ++counts.instructions[pipe];
    }

    uint32_t Carve(uint32_t size)
    {
        if (size == 0 || size % BLOCK_BYTES) {
            Fail("%u bytes are not a positive multiple of %u", size, BLOCK_BYTES);
        }
        if (size > UB_BYTES - ub_used) {
            Fail("UB overflow: %u + %u bytes exceed the capacity of %u", ub_used, size, UB_BYTES);
        }
        const uint32_t offset = ub_used;
        ub_used += size;
        counts.ub_peak = std::max<uint64_t>(counts.ub_peak, ub_used);
        return offset;
    }

    Region &RegionAt(const uint8_t *address)
    {
        for (auto &region : regions) {
            if (address >= region->base && address <= region->base + region->size) {
                return *region;
            }
        }
        Fail("GM address %p is in no tensor of this launch", static_cast<const void *>(address));
    }

    // What a block leaves behind once its function has returned.
    void End()
    {
        Enter("end of the kernel", position.at);
        for (const Buffer &buffer : buffers) {
            if (buffer.state != Buffer::FREE && buffer.state != Buffer::ALWAYS) {
                Fail("a %s tensor (UB %s) is still %s: FreeTensor is missing",
                     PositionName(buffer.position),
                     UnifiedBuffer::Range(buffer.offset, buffer.size).c_str(),
                     buffer.state == Buffer::QUEUED ? "in its queue" : "held");
            }
        }
        for (int event = 0; event < HARD_EVENTS; ++event) {
            for (int id = 0; id < EVENT_IDS; ++id) {
                const Flag &flag = flags[event][id];
                const EventPipes ends = PipesOf(event);
                if (flag.set) {
                    Fail("event %s_%s %d, set at %s, was never waited for", PipeName(ends.from),
                         PipeName(ends.to), id, Place("SetFlag", flag.at).c_str());
                }
                if (flag.reserved) {
                    Fail("event %s_%s %d was never released", PipeName(ends.from),
                         PipeName(ends.to), id);
                }
            }
        }
    }
};

inline Machine machine;

} // namespace twin
