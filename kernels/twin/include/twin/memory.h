// Shadows of the two memories a vector core sees: its unified buffer (UB) and global memory (GM).
// Each remembers who wrote and who read what, and finds hazards, races and unwritten bytes.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "clock.h"

namespace twin {

constexpr uint32_t UB_BYTES = 196608;
constexpr uint32_t BLOCK_BYTES = 32; // the unit of UB: alignment of vectors and of DMA
constexpr uint8_t POISON = 0xff;     // a NaN in every floating type here

class UnifiedBuffer {
public:
    UnifiedBuffer() : bytes_(Aligned(UB_BYTES)), written_(UB_BYTES), cells_(UB_BYTES / CELL) {}
    UnifiedBuffer(const UnifiedBuffer &) = delete;
    UnifiedBuffer &operator=(const UnifiedBuffer &) = delete;
    ~UnifiedBuffer() { std::free(bytes_); }

    // UB keeps its bytes between blocks on hardware too: never those that this block expects.
    void Reset()
    {
        std::fill(bytes_, bytes_ + UB_BYTES, POISON);
        std::fill(written_.begin(), written_.end(), 0);
        std::fill(cells_.begin(), cells_.end(), Cell{});
    }

    uint8_t *At(uint32_t offset) { return bytes_ + offset; }

    void Read(const Pipes &pipes, Pipe pipe, uint32_t begin, uint32_t size)
    {
        const uint8_t *first = written_.data() + begin;
        if (const void *hole = std::memchr(first, 0, size)) {
            Fail("%s reads UB %s, of which byte %u was never written", PipeName(pipe),
                 Range(begin, size).c_str(),
                 static_cast<unsigned>(static_cast<const uint8_t *>(hole) - first));
        }
        for (uint32_t c = begin / CELL; c <= (begin + size - 1) / CELL; ++c) {
            Cell &cell = cells_[c];
            if (cell.written && !pipes.Ended(pipe, cell.writer, cell.written)) {
                FailHazard(pipes, "RAW", pipe, "reads", "UB " + Range(begin, size), cell.writer,
                           cell.written, "wrote");
            }
            cell.read[pipe] = pipes.issued[pipe];
        }
    }

    // `defined` bytes from `begin` get values; the rest of `size` is touched and left unknown.
    void Write(const Pipes &pipes, Pipe pipe, uint32_t begin, uint32_t size, uint32_t defined)
    {
        for (uint32_t c = begin / CELL; c <= (begin + size - 1) / CELL; ++c) {
            CheckWrite(pipes, pipe, cells_[c], begin, size);
            cells_[c] = Cell{};
            cells_[c].written = pipes.issued[pipe];
            cells_[c].writer = pipe;
        }
        std::fill_n(written_.begin() + begin, defined, uint8_t(1));
        std::fill_n(written_.begin() + begin + defined, size - defined, uint8_t(0));
        std::fill_n(bytes_ + begin + defined, size - defined, POISON);
    }

    static std::string Range(uint32_t begin, uint32_t size)
    {
        char text[48];
        std::snprintf(text, sizeof text, "[0x%x, 0x%x)", begin, begin + size);
        return text;
    }

    static uint8_t *Aligned(size_t bytes)
    {
        constexpr size_t alignment = 512;
        const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
        return static_cast<uint8_t *>(std::aligned_alloc(alignment, rounded + alignment));
    }

private:
    static constexpr uint32_t CELL = 4;
    struct Cell {
        uint32_t written = 0;
        std::array<uint32_t, PIPES> read{};
        Pipe writer = S;
    };

    static void CheckWrite(
        const Pipes &pipes, Pipe pipe, const Cell &cell, uint32_t begin, uint32_t size)
    {
        if (cell.written && !pipes.Ended(pipe, cell.writer, cell.written)) {
            FailHazard(pipes, "WAW", pipe, "writes", "UB " + Range(begin, size), cell.writer,
                       cell.written, "wrote");
        }
        for (int q = 0; q < PIPES; ++q) {
            // A pipe takes its own instructions in order: it has read before it writes again.
            if (q != pipe && cell.read[q] && !pipes.Ended(pipe, Pipe(q), cell.read[q])) {
                FailHazard(pipes, "WAR", pipe, "writes", "UB " + Range(begin, size), Pipe(q),
                           cell.read[q], "reads");
            }
        }
    }

    uint8_t *bytes_;
    std::vector<uint8_t> written_;
    std::vector<Cell> cells_;
};

// One tensor in global memory. Two bytes are the finest grain: no type here is smaller.
class Region {
public:
    enum Role : int32_t { INPUT = 0, OUTPUT = 1, SCRATCH = 2, TILING = 3, IN_PLACE = 4 };

    Region(std::string name, Role role, uint64_t size)
        : name(std::move(name)), role(role), size(size), base(UnifiedBuffer::Aligned(size)),
          cells_((size + 1) / 2)
    {
        std::fill(base, base + size, POISON);
    }
    Region(const Region &) = delete;
    Region &operator=(const Region &) = delete;
    ~Region() { std::free(base); }

    const std::string name;
    const Role role;
    const uint64_t size;
    uint8_t *const base;

    void Read(const Pipes &pipes, Pipe pipe, int block, int64_t begin, uint64_t bytes)
    {
        Bounds(begin, bytes, "reads");
        for (uint64_t c = begin / 2; bytes && c <= (begin + bytes - 1) / 2; ++c) {
            Cell &cell = cells_[c];
            if ((role == OUTPUT || role == SCRATCH) && !cell.written_by) {
                Fail("reads %s, which nothing has written", Range(begin, bytes).c_str());
            }
            if (cell.written_by && cell.written_by != block + 1) {
                Fail("race between blocks: reads %s, which block %d writes in this launch",
                     Range(begin, bytes).c_str(), cell.written_by - 1);
            }
            if (cell.written_by && !pipes.Ended(pipe, cell.writer, cell.written)) {
                FailHazard(pipes, "RAW", pipe, "reads", Range(begin, bytes), cell.writer,
                           cell.written, "wrote");
            }
            const bool others = cell.read_by && cell.read_by != block + 1;
            cell.read_by = others ? SEVERAL : static_cast<uint16_t>(block + 1);
            cell.read[pipe == S] = pipes.issued[pipe];
        }
    }

    void Write(const Pipes &pipes, Pipe pipe, int block, int64_t begin, uint64_t bytes)
    {
        if (role == INPUT || role == TILING) {
            Fail("writes %s, an input of this kernel", Range(begin, bytes).c_str());
        }
        Bounds(begin, bytes, "writes");
        for (uint64_t c = begin / 2; bytes && c <= (begin + bytes - 1) / 2; ++c) {
            Cell &cell = cells_[c];
            if (cell.written_by && cell.written_by != block + 1) {
                Fail("blocks overlap: writes %s, which block %d wrote too",
                     Range(begin, bytes).c_str(), cell.written_by - 1);
            }
            if (cell.read_by && cell.read_by != block + 1) {
                Fail("race between blocks: writes %s, which %s in this launch",
                     Range(begin, bytes).c_str(),
                     cell.read_by == SEVERAL
                         ? "other blocks read"
                         : ("block " + std::to_string(cell.read_by - 1) + " reads").c_str());
            }
            CheckWrite(pipes, pipe, cell, begin, bytes);
            cell.written_by = static_cast<uint16_t>(block + 1);
            cell.written = pipes.issued[pipe];
            cell.writer = pipe;
        }
    }

    uint64_t Unwritten() const
    {
        uint64_t cells = 0;
        for (const Cell &cell : cells_) {
            cells += cell.written_by == 0;
        }
        return std::min(2 * cells, size);
    }

    std::string Range(int64_t begin, uint64_t bytes) const
    {
        char text[160];
        std::snprintf(text, sizeof text, "GM %.60s bytes [%lld, %lld) of %llu", name.c_str(),
                      static_cast<long long>(begin), static_cast<long long>(begin + bytes),
                      static_cast<unsigned long long>(size));
        return text;
    }

private:
    static constexpr uint16_t SEVERAL = 0xffff;
    struct Cell {
        // block + 1; the times below are of that block, and no other gets as far as to them.
        uint16_t written_by = 0;
        uint16_t read_by = 0;
        uint32_t written = 0;
        std::array<uint32_t, 2> read{}; // by MTE2, by S
        Pipe writer = S;
    };

    void Bounds(int64_t begin, uint64_t bytes, const char *verb) const
    {
        if (begin < 0 || begin + bytes > size) {
            Fail("out of bounds: %s %s", verb, Range(begin, bytes).c_str());
        }
    }

    void CheckWrite(
        const Pipes &pipes, Pipe pipe, const Cell &cell, int64_t begin, uint64_t bytes) const
    {
        if (cell.written && !pipes.Ended(pipe, cell.writer, cell.written)) {
            FailHazard(pipes, "WAW", pipe, "writes", Range(begin, bytes), cell.writer,
                       cell.written, "wrote");
        }
        for (const Pipe reader : {MTE2, S}) {
            const uint32_t time = cell.read[reader == S];
            if (time && reader != pipe && !pipes.Ended(pipe, reader, time)) {
                FailHazard(pipes, "WAR", pipe, "writes", Range(begin, bytes), reader, time,
                           "reads");
            }
        }
    }

    std::vector<Cell> cells_;
};

} // namespace twin
