// The pipes of a vector core and what each of them knows about the others.
//
// The scalar unit hands instructions to queues that run beside each other. An instruction is
// number `issued[p]` of its pipe p; `known[p][q]` is the last instruction of pipe q that has
// certainly ended before the next one of pipe p starts. Only events, queues and barriers raise it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "fault.h"

namespace twin {

enum Pipe : uint8_t { S, V, MTE2, MTE3, PIPES };

inline const char *PipeName(int pipe)
{
    static const char *const names[] = {"S", "V", "MTE2", "MTE3"};
    return names[pipe];
}

using Clock = std::array<uint32_t, PIPES>;

inline void Join(Clock &into, const Clock &other)
{
    for (int q = 0; q < PIPES; ++q) {
        into[q] = into[q] > other[q] ? into[q] : other[q];
    }
}

struct Pipes {
    struct Instruction {
        const char *call;
        At at;
    };

    Clock issued{};
    std::array<Clock, PIPES> known{};
    std::array<std::vector<Instruction>, PIPES> history;
    bool strict = true; // a vector instruction does not wait for the one before it by itself

    void Reset()
    {
        issued = {};
        known = {};
        for (auto &instructions : history) {
            instructions.clear();
        }
    }

    uint32_t Issue(Pipe pipe, const char *call, At at)
    {
        history[pipe].push_back({call, at});
        return ++issued[pipe];
    }

    // What is known to have ended once everything issued to `pipe` has: the content of a flag.
    Clock Snapshot(Pipe pipe) const
    {
        Clock snapshot = known[pipe];
        snapshot[pipe] = issued[pipe];
        return snapshot;
    }

    void Barrier(Pipe pipe) { known[pipe][pipe] = issued[pipe]; }

    void BarrierAll()
    {
        for (auto &clock : known) {
            clock = issued;
        }
    }

    // Has instruction `time` of pipe `other` ended before the next one of `pipe` starts?
    bool Ended(Pipe pipe, Pipe other, uint32_t time) const
    {
        if (pipe == other && (pipe == S || (pipe == V && !strict))) {
            return true;
        }
        return time <= known[pipe][other];
    }

    std::string Describe(Pipe pipe, uint32_t time) const
    {
        const Instruction &instruction = history[pipe][time - 1];
        return Place(instruction.call, instruction.at);
    }
};

[[noreturn]] inline void FailHazard(
    const Pipes &pipes, const char *kind, Pipe pipe, const char *verb, const std::string &where,
    Pipe other, uint32_t time, const char *other_verb)
{
    const std::string earlier = pipes.Describe(other, time);
    if (pipe == other) {
        Fail("%s hazard: %s %s %s, which %s (same pipe) %s, without PipeBarrier<PIPE_%s>", kind,
             PipeName(pipe), verb, where.c_str(), earlier.c_str(), other_verb, PipeName(pipe));
    }
    Fail("%s hazard: %s %s %s, which %s %s in %s, without a %s_%s event, queue or barrier between",
         kind, PipeName(pipe), verb, where.c_str(), PipeName(other), other_verb, earlier.c_str(),
         PipeName(other), PipeName(pipe));
}

} // namespace twin
