// LocalTensor: a typed view of a buffer in UB. GlobalTensor: a typed view of a tensor in GM.
// Neither gives out a host pointer: every access goes through the shadows.
#pragma once

#include <type_traits>

#include "machine.h"
#include "types.h"

namespace AscendC {

template <typename T> class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(int buffer, uint32_t generation, uint32_t begin, uint32_t count)
        : buffer_(buffer), generation_(generation), begin_(begin), count_(count)
    {
    }

    LocalTensor operator[](uint32_t offset) const
    {
        Owner();
        if (offset > count_) {
            twin::Fail("out of bounds: operator[](%u) of a LocalTensor of %u elements (UB %s)",
                       offset, count_, Where().c_str());
        }
        return LocalTensor(buffer_, generation_, begin_ + offset * Size(), count_ - offset);
    }

    template <typename U> LocalTensor<U> ReinterpretCast() const
    {
        return LocalTensor<U>(buffer_, generation_, begin_,
                              count_ * Size() / static_cast<uint32_t>(sizeof(U)));
    }

    uint32_t GetSize() const { return count_; }

    T GetValue(uint32_t index, twin::At at = twin::At::Here()) const
    {
        twin::machine.Issue(twin::S, "GetValue", at);
        return *(*this)[index].template Access<false>(twin::S, 1, sizeof(T));
    }

    void SetValue(uint32_t index, T value, twin::At at = twin::At::Here()) const
    {
        twin::machine.Issue(twin::S, "SetValue", at);
        *(*this)[index].template Access<true>(twin::S, 1, sizeof(T)) = value;
    }

    // For the API of the twin only: the checked way to `count` elements.
    template <bool WRITE>
    T *Access(
        twin::Pipe pipe, uint32_t count, uint32_t alignment, uint32_t defined_bytes = ~0u) const
    {
        twin::Buffer &owner = Owner();
        if (begin_ % alignment) {
            twin::Fail("UB address 0x%x is not aligned to %u bytes", begin_, alignment);
        }
        if (count == 0) {
            twin::Fail("count is 0");
        }
        if (count > count_) {
            twin::Fail("out of bounds: %u elements of a LocalTensor of %u (UB %s)", count, count_,
                       Where().c_str());
        }
        CheckTurn(owner, pipe, WRITE);
        const uint32_t bytes = count * Size();
        if constexpr (WRITE) {
            twin::machine.ub.Write(twin::machine.pipes, pipe, begin_, bytes,
                                   std::min(defined_bytes, bytes));
        } else {
            twin::machine.ub.Read(twin::machine.pipes, pipe, begin_, bytes);
        }
        return reinterpret_cast<T *>(twin::machine.ub.At(begin_));
    }

    uint32_t Begin() const { return begin_; }
    int BufferIndex() const { return buffer_; }
    uint32_t Generation() const { return generation_; }

private:
    static constexpr uint32_t Size() { return sizeof(T); }

    std::string Where() const { return twin::UnifiedBuffer::Range(begin_, count_ * Size()); }

    twin::Buffer &Owner() const
    {
        if (buffer_ < 0) {
            twin::Fail("this LocalTensor was never given a buffer");
        }
        twin::Buffer &owner = twin::machine.buffers[buffer_];
        if (owner.state == twin::Buffer::FREE || owner.generation != generation_) {
            twin::Fail("use after FreeTensor: a %s tensor (UB %s)",
                       twin::PositionName(owner.position), Where().c_str());
        }
        return owner;
    }

    // Whose turn is it? Between AllocTensor and DeQue the filling pipe's, then everyone's.
    static void CheckTurn(const twin::Buffer &owner, twin::Pipe pipe, bool write)
    {
        if (owner.state == twin::Buffer::QUEUED) {
            twin::Fail("a %s tensor is used between EnQue and DeQue",
                       twin::PositionName(owner.position));
        }
        const bool fills = owner.fills == pipe || (owner.fills == twin::V && pipe == twin::S);
        if (owner.state == twin::Buffer::ALLOCATED && !write && !fills) {
            twin::Fail("a %s tensor is read by %s before DeQue",
                       twin::PositionName(owner.position), twin::PipeName(pipe));
        }
    }

    int buffer_ = -1;
    uint32_t generation_ = 0;
    uint32_t begin_ = 0;
    uint32_t count_ = 0;
};

template <typename T> class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(__gm__ T *address, uint64_t count = 0, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("SetGlobalBuffer", at);
        const auto *bytes = reinterpret_cast<const uint8_t *>(address);
        region_ = &twin::machine.RegionAt(bytes);
        begin_ = bytes - region_->base;
        count_ = count;
    }

    GlobalTensor operator[](uint64_t offset) const
    {
        GlobalTensor moved = *this;
        moved.begin_ += static_cast<int64_t>(offset * sizeof(T));
        moved.count_ = count_ > offset ? count_ - offset : 0;
        return moved;
    }

    uint64_t GetSize() const { return count_; }

    T GetValue(uint64_t index, twin::At at = twin::At::Here()) const
    {
        twin::machine.Issue(twin::S, "GlobalTensor::GetValue", at);
        T value;
        std::memcpy(&value, (*this)[index].Read(twin::S, sizeof(T)), sizeof(T));
        return value;
    }

    const uint8_t *Read(twin::Pipe pipe, uint64_t bytes) const
    {
        Given().Read(twin::machine.pipes, pipe, twin::machine.Block(), begin_, bytes);
        return region_->base + begin_;
    }

    uint8_t *Write(twin::Pipe pipe, uint64_t bytes) const
    {
        Given().Write(twin::machine.pipes, pipe, twin::machine.Block(), begin_, bytes);
        return region_->base + begin_;
    }

    GlobalTensor AtByte(int64_t bytes) const
    {
        GlobalTensor moved = *this;
        moved.begin_ += bytes;
        return moved;
    }

    int64_t Begin() const { return begin_; }
    const char *Name() const { return Given().name.c_str(); }

private:
    twin::Region &Given() const
    {
        if (region_ == nullptr) {
            twin::Fail("this GlobalTensor was never given a buffer (SetGlobalBuffer)");
        }
        return *region_;
    }

    twin::Region *region_ = nullptr;
    int64_t begin_ = 0;
    uint64_t count_ = 0;
};

} // namespace AscendC
