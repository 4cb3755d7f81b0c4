// Events, hazards between pipes, and blocks against each other (run with two blocks).
#include "common.h"

extern "C" __global__ __aicore__ void wait_without_set(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    if (!Planted(tiling)) {
        SetFlag<HardEvent::V_MTE3>(EVENT_ID1);
    }
    WaitFlag<HardEvent::V_MTE3>(EVENT_ID1);
}

extern "C" __global__ __aicore__ void set_twice(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
    if (Planted(tiling)) {
        SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
    }
    WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
}

extern "C" __global__ __aicore__ void left_set(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    SetFlag<HardEvent::MTE3_V>(EVENT_ID2);
    if (!Planted(tiling)) {
        WaitFlag<HardEvent::MTE3_V>(EVENT_ID2);
    }
}

extern "C" __global__ __aicore__ void event_id(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    const int32_t id = Planted(tiling) ? 8 : 7;
    SetFlag<HardEvent::V_MTE3>(id);
    WaitFlag<HardEvent::V_MTE3>(id);
}

extern "C" __global__ __aicore__ void kept_event(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    const int32_t id = pipe.AllocEventID<HardEvent::V_MTE3>();
    if (!Planted(tiling)) {
        pipe.ReleaseEventID<HardEvent::V_MTE3>(id);
    }
}

extern "C" __global__ __aicore__ void scalar_reads_load(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in), N);
    if (!Planted(tiling)) {
        Sync<HardEvent::MTE2_S>();
    }
    buffer.Get<float>().GetValue(3);
}

extern "C" __global__ __aicore__ void load_over_scalar(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const bool planted = Planted(tiling);
    for (int i = 0; i < 2; ++i) {
        if (i && !planted) {
            Sync<HardEvent::S_MTE2>();
        }
        PipeBarrier<PIPE_MTE2>();
        DataCopy(buffer.Get<float>(), Global(in), N);
        Sync<HardEvent::MTE2_S>();
        buffer.Get<float>().GetValue(3);
    }
}

extern "C" __global__ __aicore__ void scalar_reads_vector(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    if (!Planted(tiling)) {
        Sync<HardEvent::V_S>();
    }
    x.GetValue(0);
}

extern "C" __global__ __aicore__ void vector_reads_scalar(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, 32);
    for (uint32_t i = 0; i < 8; ++i) {
        buffer.Get<float>().SetValue(i, 1.0f);
    }
    if (!Planted(tiling)) {
        Sync<HardEvent::S_V>();
    }
    Adds(buffer.Get<float>(), buffer.Get<float>(), 1.0f, 8);
}

extern "C" __global__ __aicore__ void vector_reads_load(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in), N);
    if (!Planted(tiling)) {
        Sync<HardEvent::MTE2_V>();
    }
    Adds(buffer.Get<float>(), buffer.Get<float>(), 1.0f, N);
}

extern "C" __global__ __aicore__ void load_over_vector(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const bool planted = Planted(tiling);
    for (int i = 0; i < 2; ++i) {
        if (i && !planted) {
            Sync<HardEvent::V_MTE2>();
        }
        PipeBarrier<PIPE_MTE2>();
        DataCopy(a.Get<float>(), Global(in), N);
        Sync<HardEvent::MTE2_V>();
        PipeBarrier<PIPE_V>();
        Adds(b.Get<float>(), a.Get<float>(), 1.0f, N);
    }
}

extern "C" __global__ __aicore__ void store_reads_vector(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    if (!Planted(tiling)) {
        Sync<HardEvent::V_MTE3>();
    }
    DataCopy(Global(out), x, N);
}

extern "C" __global__ __aicore__ void vector_over_store(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global(out), x, N);
    if (!Planted(tiling)) {
        Sync<HardEvent::MTE3_V>();
    }
    Adds(x, x, 1.0f, N);
}

// The queue has one buffer: its edge V -> MTE2 is FreeTensor's, and what V does after it is late.
extern "C" __global__ __aicore__ void free_too_early(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    In ins;
    Scratch copy;
    pipe.InitBuffer(ins, 1, BYTES);
    pipe.InitBuffer(copy, BYTES);
    LocalTensor<float> x = Fetch(ins, in);
    const bool planted = Planted(tiling);
    if (!planted) {
        Adds(copy.Get<float>(), x, 1.0f, N);
    }
    ins.FreeTensor(x);
    x = ins.AllocTensor<float>();
    if (planted) {
        Duplicate(x, 0.0f, N); // V is not the pipe that AllocTensor waited for
    }
    DataCopy(x, Global(in), N);
    ins.EnQue(x);
    x = ins.DeQue<float>();
    ins.FreeTensor(x);
    (void)out;
}

// What V does between EnQue and DeQue is not part of the queue's edge to MTE3.
extern "C" __global__ __aicore__ void edge_of_enque(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Out outs;
    Scratch buffer;
    pipe.InitBuffer(outs, 1, BYTES);
    pipe.InitBuffer(buffer, BYTES);
    LocalTensor<float> y = outs.AllocTensor<float>();
    Duplicate(y, 1.0f, N);
    outs.EnQue(y);
    Duplicate(buffer.Get<float>(), 2.0f, N);
    y = outs.DeQue<float>();
    DataCopy(Global(out), y, N);
    outs.FreeTensor(y);
    if (!Planted(tiling)) {
        Sync<HardEvent::V_MTE3>();
    }
    DataCopy(Global(out, N), buffer.Get<float>(), N);
}

// What V does between FreeTensor and AllocTensor is not part of the queue's edge to MTE2.
extern "C" __global__ __aicore__ void edge_of_free(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    Scratch buffer;
    pipe.InitBuffer(ins, 1, BYTES);
    pipe.InitBuffer(buffer, BYTES);
    LocalTensor<float> x = Fetch(ins, in);
    ins.FreeTensor(x);
    Duplicate(buffer.Get<float>(), 2.0f, N);
    x = ins.AllocTensor<float>();
    if (!Planted(tiling)) {
        Sync<HardEvent::V_MTE2>();
    }
    DataCopy(buffer.Get<float>(), Global(in), N);
    ins.FreeTensor(x);
}

extern "C" __global__ __aicore__ void vector_barrier(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Adds(x, x, 1.0f, N);
    if (!Planted(tiling)) {
        PipeBarrier<PIPE_V>();
    }
    Muls(x, x, 2.0f, N);
}

extern "C" __global__ __aicore__ void vector_writes_twice(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    Duplicate(buffer.Get<float>(), 0.0f, N);
    if (!Planted(tiling)) {
        PipeBarrier<PIPE_V>();
    }
    Duplicate(buffer.Get<float>(), 1.0f, 8);
}

extern "C" __global__ __aicore__ void store_over_store(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global(out), x, N);
    if (!Planted(tiling)) {
        PipeBarrier<PIPE_MTE3>();
    }
    DataCopy(Global(out), x, 8);
}

extern "C" __global__ __aicore__ void read_back(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global(out), x, N);
    if (!Planted(tiling)) {
        Sync<HardEvent::MTE3_MTE2>();
    }
    DataCopy(b.Get<float>(), Global(out), N);
}

extern "C" __global__ __aicore__ void blocks_overlap(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    const auto block = static_cast<uint32_t>(GetBlockIdx());
    DataCopy(Global(out, block * (Planted(tiling) ? N - 8 : N)), x, N);
}

extern "C" __global__ __aicore__ void reads_other_block(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Sync<HardEvent::V_MTE3>();
    const auto block = static_cast<uint32_t>(GetBlockIdx());
    DataCopy(Global(out, block * N), x, N);
    Sync<HardEvent::MTE3_MTE2>();
    DataCopy(b.Get<float>(), Global(out, Planted(tiling) ? 0 : block * N), N);
}

// In place on `in`.
extern "C" __global__ __aicore__ void writes_what_is_read(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Sync<HardEvent::V_MTE3>();
    if (GetBlockIdx() == 0) {
        DataCopy(b.Get<float>(), Global(in), N);
    } else {
        DataCopy(Global(in, Planted(tiling) ? N - 8 : N), x, N);
    }
}

// In place on `in`.
extern "C" __global__ __aicore__ void store_over_load(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(b.Get<float>(), Global(in), N);
    if (!Planted(tiling)) {
        Sync<HardEvent::MTE2_MTE3>();
    }
    DataCopy(Global(in), x, N);
}
