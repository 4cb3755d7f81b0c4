// TPipe, TQue, TQueBind, TBuf. A queue's edges are taken where the hardware takes them: the
// filling pipe's at EnQue (seen at DeQue), the taking pipe's at FreeTensor (seen at AllocTensor).
#pragma once

#include "tensor.h"

namespace AscendC {

template <TPosition SRC, TPosition DST, int32_t DEPTH> class TQueBind;
template <TPosition POSITION> class TBuf;

class TPipe {
public:
    TPipe(twin::At at = twin::At::Here())
    {
        twin::machine.Enter("TPipe", at);
        if (current != nullptr) {
            twin::Fail("a second TPipe in one kernel");
        }
        current = this;
    }
    TPipe(const TPipe &) = delete;
    TPipe &operator=(const TPipe &) = delete;
    ~TPipe() { current = nullptr; }

    template <typename QUEUE>
    bool InitBuffer(QUEUE &queue, uint8_t number, uint32_t bytes, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("InitBuffer", at);
        if (number == 0) {
            twin::Fail("a queue of 0 buffers");
        }
        queue.Start(number, bytes);
        return true;
    }

    template <TPosition POSITION>
    bool InitBuffer(TBuf<POSITION> &buffer, uint32_t bytes, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("InitBuffer", at);
        buffer.Start(bytes);
        return true;
    }

    // The lowest id that nobody reserved; a bare look, as in the API.
    int32_t FetchEventID(HardEvent event, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("FetchEventID", at);
        for (int id = 0; id < twin::EVENT_IDS; ++id) {
            if (!twin::machine.flags[static_cast<int>(event)][id].reserved) {
                return id;
            }
        }
        twin::Fail("all %d event ids of this pair of pipes are reserved", twin::EVENT_IDS);
    }

    template <HardEvent EVENT> int32_t AllocEventID(twin::At at = twin::At::Here())
    {
        const int32_t id = FetchEventID(EVENT, at);
        twin::machine.flags[static_cast<int>(EVENT)][id].reserved = true;
        return id;
    }

    template <HardEvent EVENT> void ReleaseEventID(int32_t id, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("ReleaseEventID", at);
        if (id < 0 || id >= twin::EVENT_IDS
            || !twin::machine.flags[static_cast<int>(EVENT)][id].reserved) {
            twin::Fail("event id %d is not reserved", id);
        }
        twin::machine.flags[static_cast<int>(EVENT)][id].reserved = false;
    }

    inline static TPipe *current = nullptr;
};

inline TPipe *GetTPipePtr(twin::At at = twin::At::Here())
{
    twin::machine.Enter("GetTPipePtr", at);
    if (TPipe::current == nullptr) {
        twin::Fail("GetTPipePtr without a TPipe");
    }
    return TPipe::current;
}

template <TPosition SRC, TPosition DST, int32_t DEPTH> class TQueBind {
    static_assert(DEPTH >= 1, "a queue has a depth of at least 1");
    static_assert((SRC == TPosition::GM && DST == TPosition::VECIN)
                      || (SRC == TPosition::VECOUT && DST == TPosition::GM)
                      || (SRC == TPosition::VECIN && DST == TPosition::VECOUT),
                  "the twin knows VECIN, VECOUT and VECIN bound to VECOUT");

public:
    template <typename T> LocalTensor<T> AllocTensor(twin::At at = twin::At::Here())
    {
        twin::machine.Enter("AllocTensor", at);
        Started();
        for (int i = 0; i < number_; ++i) {
            // In turn, as the hardware's flags are: the buffer after the last one given out.
            const int index = first_ + (next_ + i) % number_;
            twin::Buffer &buffer = twin::machine.buffers[index];
            if (buffer.state == twin::Buffer::FREE) {
                next_ = (next_ + i + 1) % number_;
                buffer.state = twin::Buffer::ALLOCATED;
                ++buffer.generation;
                twin::Join(twin::machine.pipes.known[FILLS], buffer.released);
                return Tensor<T>(index);
            }
        }
        twin::Fail("hang: all %d buffers of this %s queue are in use, FreeTensor is missing",
                   number_, twin::PositionName(POSITION));
    }

    template <typename T> bool EnQue(const LocalTensor<T> &tensor, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("EnQue", at);
        twin::Buffer &buffer = Own(tensor.BufferIndex(), tensor.Generation());
        if (buffer.state != twin::Buffer::ALLOCATED) {
            twin::Fail("EnQue of a tensor that AllocTensor did not give out");
        }
        if (queued_ == DEPTH) {
            twin::Fail("EnQue number %d into a queue of depth %d", queued_ + 1, DEPTH);
        }
        order_[queued_++] = tensor.BufferIndex();
        buffer.state = twin::Buffer::QUEUED;
        buffer.filled = twin::machine.pipes.Snapshot(FILLS);
        return true;
    }

    template <typename T> LocalTensor<T> DeQue(twin::At at = twin::At::Here())
    {
        twin::machine.Enter("DeQue", at);
        Started();
        if (queued_ == 0) {
            twin::Fail("hang: DeQue of an empty %s queue", twin::PositionName(POSITION));
        }
        const int index = order_[0];
        std::copy(order_ + 1, order_ + queued_, order_);
        --queued_;
        twin::Buffer &buffer = twin::machine.buffers[index];
        buffer.state = twin::Buffer::DEQUEUED;
        twin::Join(twin::machine.pipes.known[TAKES], buffer.filled);
        return Tensor<T>(index);
    }

    template <typename T> void FreeTensor(LocalTensor<T> &tensor, twin::At at = twin::At::Here())
    {
        twin::machine.Enter("FreeTensor", at);
        twin::Buffer &buffer = Own(tensor.BufferIndex(), tensor.Generation());
        if (buffer.state == twin::Buffer::FREE) {
            twin::Fail("FreeTensor twice of one %s tensor", twin::PositionName(POSITION));
        }
        if (buffer.state == twin::Buffer::QUEUED) {
            twin::Fail("FreeTensor of a %s tensor that is in its queue",
                       twin::PositionName(POSITION));
        }
        buffer.state = twin::Buffer::FREE;
        buffer.released = twin::machine.pipes.Snapshot(TAKES);
    }

    void Start(int number, uint32_t bytes)
    {
        if (number_ != 0) {
            twin::Fail("this queue has its buffers already");
        }
        number_ = number;
        queue_ = twin::machine.queues++;
        first_ = static_cast<int>(twin::machine.buffers.size());
        for (int i = 0; i < number; ++i) {
            twin::Buffer buffer;
            buffer.position = POSITION;
            buffer.fills = FILLS;
            buffer.takes = TAKES;
            buffer.size = bytes;
            buffer.offset = twin::machine.Carve(bytes);
            buffer.queue = queue_;
            twin::machine.buffers.push_back(buffer);
        }
    }

private:
    static constexpr TPosition POSITION = SRC == TPosition::GM ? DST : SRC;
    static constexpr twin::Pipe FILLS = POSITION == TPosition::VECIN ? twin::MTE2 : twin::V;
    static constexpr twin::Pipe TAKES = DST == TPosition::VECIN ? twin::V : twin::MTE3;

    template <typename T> LocalTensor<T> Tensor(int index) const
    {
        const twin::Buffer &buffer = twin::machine.buffers[index];
        return LocalTensor<T>(index, buffer.generation, buffer.offset,
                              buffer.size / static_cast<uint32_t>(sizeof(T)));
    }

    void Started() const
    {
        if (number_ == 0) {
            twin::Fail("this queue was given no buffers (InitBuffer)");
        }
    }

    twin::Buffer &Own(int index, uint32_t generation) const
    {
        Started();
        if (index < 0 || twin::machine.buffers[index].queue != queue_) {
            twin::Fail("this tensor belongs to another queue");
        }
        twin::Buffer &buffer = twin::machine.buffers[index];
        if (buffer.generation != generation) {
            twin::Fail("a stale tensor: its buffer was freed and given out again");
        }
        return buffer;
    }

    int queue_ = -1, first_ = 0, number_ = 0, next_ = 0;
    int queued_ = 0;
    int order_[DEPTH] = {};
};

template <TPosition POSITION, int32_t DEPTH>
class TQue
    : public TQueBind<POSITION == TPosition::VECIN ? TPosition::GM : POSITION,
                      POSITION == TPosition::VECIN ? POSITION : TPosition::GM, DEPTH> {};

template <TPosition POSITION = TPosition::VECCALC> class TBuf {
public:
    template <typename T> LocalTensor<T> Get(twin::At at = twin::At::Here()) const
    {
        twin::machine.Enter("TBuf::Get", at);
        const twin::Buffer &buffer = Mine();
        return LocalTensor<T>(index_, buffer.generation, buffer.offset,
                              buffer.size / static_cast<uint32_t>(sizeof(T)));
    }

    template <typename T> LocalTensor<T> Get(uint32_t count, twin::At at = twin::At::Here()) const
    {
        twin::machine.Enter("TBuf::Get", at);
        const twin::Buffer &buffer = Mine();
        if (count * sizeof(T) > buffer.size) {
            twin::Fail("out of bounds: Get of %zu bytes of a TBuf of %u", count * sizeof(T),
                       buffer.size);
        }
        return LocalTensor<T>(index_, buffer.generation, buffer.offset, count);
    }

    void Start(uint32_t bytes)
    {
        twin::Buffer buffer;
        buffer.position = POSITION;
        buffer.state = twin::Buffer::ALWAYS;
        buffer.size = bytes;
        buffer.offset = twin::machine.Carve(bytes);
        index_ = static_cast<int>(twin::machine.buffers.size());
        twin::machine.buffers.push_back(buffer);
    }

private:
    const twin::Buffer &Mine() const
    {
        if (index_ < 0) {
            twin::Fail("this TBuf was given no buffer (InitBuffer)");
        }
        return twin::machine.buffers[index_];
    }

    int index_ = -1;
};

} // namespace AscendC
