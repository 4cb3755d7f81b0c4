// Kernels with one fault each that the twin must find, and without it when tiling is 0: so every
// check is seen to pass and to fail. `in` and `out` hold 1024 floats; N of them are worked on.
#include "kernel_operator.h"

using namespace AscendC;

namespace {

constexpr uint32_t N = 64;
constexpr uint32_t BYTES = N * sizeof(float);

using In = TQue<TPosition::VECIN, 1>;
using Out = TQue<TPosition::VECOUT, 1>;
using Scratch = TBuf<TPosition::VECCALC>;

struct Plan {
    int32_t fault;
};

bool Planted(GM_ADDR tiling)
{
    GET_TILING_DATA_WITH_STRUCT(Plan, plan, tiling);
    return plan.fault != 0;
}

GlobalTensor<float> Global(GM_ADDR address, uint32_t begin = 0)
{
    GlobalTensor<float> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(address), 1024);
    return tensor[begin];
}

template <HardEvent EVENT> void Sync()
{
    SetFlag<EVENT>(EVENT_ID0);
    WaitFlag<EVENT>(EVENT_ID0);
}

LocalTensor<float> Fetch(In &queue, GM_ADDR in)
{
    LocalTensor<float> tensor = queue.AllocTensor<float>();
    DataCopy(tensor, Global(in), N);
    queue.EnQue(tensor);
    return queue.DeQue<float>();
}

void Send(Out &queue, LocalTensor<float> tensor, GM_ADDR out)
{
    queue.EnQue(tensor);
    tensor = queue.DeQue<float>();
    DataCopy(Global(out), tensor, N);
    queue.FreeTensor(tensor);
}

LocalTensor<float> Filled(Scratch &buffer, float value)
{
    const LocalTensor<float> tensor = buffer.Get<float>();
    Duplicate(tensor, value, static_cast<int32_t>(tensor.GetSize()));
    PipeBarrier<PIPE_V>();
    return tensor;
}

} // namespace

// ---- capacity, sizes, alignment, bounds

extern "C" __global__ __aicore__ void ub_capacity(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    In queue;
    Scratch rest;
    pipe.InitBuffer(queue, 2, 65536);
    pipe.InitBuffer(rest, Planted(tiling) ? 65536 + 128 : 65536);
}

extern "C" __global__ __aicore__ void buffer_size(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, Planted(tiling) ? 100 : 128);
}

extern "C" __global__ __aicore__ void copy_length(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in), Planted(tiling) ? 9 : 16);
}

extern "C" __global__ __aicore__ void copy_alignment(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in, Planted(tiling) ? 2 : 8), 16);
}

extern "C" __global__ __aicore__ void vector_alignment(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Adds(x[Planted(tiling) ? 4 : 8], x[Planted(tiling) ? 4 : 8], 1.0f, 8);
}

extern "C" __global__ __aicore__ void gm_read_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in, Planted(tiling) ? 1024 - 32 : 1024 - N), N);
}

extern "C" __global__ __aicore__ void gm_write_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopyPad(Global(out, 1024 - 5), x, {1, Planted(tiling) ? 24u : 20u, 0, 0, 0});
}

extern "C" __global__ __aicore__ void local_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Adds(x, x, 1.0f, Planted(tiling) ? N + 8 : N);
}

extern "C" __global__ __aicore__ void dma_blocks(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, 131072);
    const uint16_t blocks = Planted(tiling) ? 4096 : 256;
    DataCopyPad(buffer.Get<float>(), Global(in), {blocks, 4, 0, 0, 0}, {true, 0, 7, 0.0f});
}

extern "C" __global__ __aicore__ void padding_size(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const uint8_t padding = Planted(tiling) ? 15 : 7;
    DataCopyPad(buffer.Get<float>(), Global(in), {1, 4, 0, 0, 0}, {true, 0, padding, 0.0f});
}

// ---- queues

extern "C" __global__ __aicore__ void before_deque(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    In ins;
    Out outs;
    pipe.InitBuffer(ins, 1, BYTES);
    pipe.InitBuffer(outs, 1, BYTES);
    LocalTensor<float> x = ins.AllocTensor<float>();
    DataCopy(x, Global(in), N);
    LocalTensor<float> y = outs.AllocTensor<float>();
    if (Planted(tiling)) {
        Adds(y, x, 1.0f, N);
    }
    ins.EnQue(x);
    x = ins.DeQue<float>();
    Adds(y, x, 1.0f, N);
    ins.FreeTensor(x);
    Send(outs, y, out);
}

extern "C" __global__ __aicore__ void inside_queue(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Out outs;
    pipe.InitBuffer(outs, 1, BYTES);
    LocalTensor<float> y = outs.AllocTensor<float>();
    Duplicate(y, 1.0f, N);
    outs.EnQue(y);
    if (Planted(tiling)) {
        DataCopy(Global(out), y, N);
    }
    y = outs.DeQue<float>();
    DataCopy(Global(out), y, N);
    outs.FreeTensor(y);
}

extern "C" __global__ __aicore__ void use_after_free(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    Scratch buffer;
    pipe.InitBuffer(ins, 2, BYTES);
    pipe.InitBuffer(buffer, BYTES);
    LocalTensor<float> x = Fetch(ins, in);
    if (Planted(tiling)) {
        ins.FreeTensor(x);
    }
    Adds(buffer.Get<float>(), x, 1.0f, N);
    ins.FreeTensor(x);
}

extern "C" __global__ __aicore__ void missing_free(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    pipe.InitBuffer(ins, 2, BYTES);
    const bool planted = Planted(tiling);
    for (int i = 0; i < 3; ++i) {
        LocalTensor<float> x = Fetch(ins, in);
        if (!planted) {
            ins.FreeTensor(x);
        }
    }
}

extern "C" __global__ __aicore__ void held_at_the_end(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    pipe.InitBuffer(ins, 2, BYTES);
    LocalTensor<float> x = Fetch(ins, in);
    if (!Planted(tiling)) {
        ins.FreeTensor(x);
    }
}

extern "C" __global__ __aicore__ void double_free(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    pipe.InitBuffer(ins, 2, BYTES);
    LocalTensor<float> x = Fetch(ins, in);
    ins.FreeTensor(x);
    if (Planted(tiling)) {
        ins.FreeTensor(x);
    }
}

extern "C" __global__ __aicore__ void enque_twice(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Out outs;
    pipe.InitBuffer(outs, 2, BYTES);
    LocalTensor<float> y = outs.AllocTensor<float>();
    Duplicate(y, 1.0f, N);
    if (Planted(tiling)) {
        outs.EnQue(y);
    }
    Send(outs, y, out);
}

extern "C" __global__ __aicore__ void queue_depth(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Out outs;
    pipe.InitBuffer(outs, 2, BYTES);
    LocalTensor<float> a = outs.AllocTensor<float>();
    LocalTensor<float> b = outs.AllocTensor<float>();
    outs.EnQue(a);
    if (Planted(tiling)) {
        outs.EnQue(b);
    }
    a = outs.DeQue<float>();
    outs.FreeTensor(a);
    outs.FreeTensor(b);
}

extern "C" __global__ __aicore__ void empty_queue(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    pipe.InitBuffer(ins, 2, BYTES);
    LocalTensor<float> x = ins.AllocTensor<float>();
    DataCopy(x, Global(in), N);
    if (!Planted(tiling)) {
        ins.EnQue(x);
    }
    x = ins.DeQue<float>();
    ins.FreeTensor(x);
}

extern "C" __global__ __aicore__ void wrong_queue(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In a, b;
    pipe.InitBuffer(a, 2, BYTES);
    pipe.InitBuffer(b, 2, BYTES);
    LocalTensor<float> x = Fetch(a, in);
    (Planted(tiling) ? b : a).FreeTensor(x);
}

// ---- events

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

// ---- hazards between pipes

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

// ---- blocks against each other (run with two blocks)

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

// ---- values

extern "C" __global__ __aicore__ void unwritten_ub(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = buffer.Get<float>();
    Duplicate(x, 1.0f, Planted(tiling) ? N - 1 : N);
    PipeBarrier<PIPE_V>();
    Adds(x, x, 1.0f, N);
}

extern "C" __global__ __aicore__ void unknown_padding(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, 32);
    const bool pads = !Planted(tiling);
    DataCopyPad(buffer.Get<float>(), Global(in), {1, 20, 0, 0, 0}, {pads, 0, 3, 0.0f});
    Sync<HardEvent::MTE2_V>();
    Adds(buffer.Get<float>(), buffer.Get<float>(), 1.0f, 8);
}

extern "C" __global__ __aicore__ void writes_input(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global(Planted(tiling) ? in : out), x, N);
}

extern "C" __global__ __aicore__ void reads_output(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(Planted(tiling) ? out : in), N);
}

extern "C" __global__ __aicore__ void cast_rounding(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Cast(b.Get<bfloat16_t>(), x, Planted(tiling) ? RoundMode::CAST_NONE : RoundMode::CAST_RINT, N);
}

extern "C" __global__ __aicore__ void shifted_overlap(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Adds(x[Planted(tiling) ? 8 : 32], x, 1.0f, 32);
}

extern "C" __global__ __aicore__ void reduce_work(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sum, work;
    pipe.InitBuffer(values, 16 * BYTES);
    pipe.InitBuffer(sum, 32);
    pipe.InitBuffer(work, Planted(tiling) ? 32 : 64);
    const LocalTensor<float> x = Filled(values, 1.0f);
    ReduceSum(sum.Get<float>(), x, work.Get<float>(), 16 * N);
}

extern "C" __global__ __aicore__ void sum_lanes(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sums;
    pipe.InitBuffer(values, 4 * BYTES);
    pipe.InitBuffer(sums, 32);
    const LocalTensor<float> x = Filled(values, 1.0f);
    WholeReduceSum(sums.Get<float>(), x, 64, 4, 1, 1, 8);
    PipeBarrier<PIPE_V>();
    Adds(sums.Get<float>(), sums.Get<float>(), 1.0f, Planted(tiling) ? 8 : 4);
}

extern "C" __global__ __aicore__ void no_buffer(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    if (!Planted(tiling)) {
        pipe.InitBuffer(ins, 1, BYTES);
    }
    LocalTensor<float> x = Fetch(ins, in);
    ins.FreeTensor(x);
}

// ---- misuse of the objects

extern "C" __global__ __aicore__ void second_pipe(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    if (Planted(tiling)) {
        TPipe another;
    }
}

extern "C" __global__ __aicore__ void buffers_twice(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    In a, b;
    pipe.InitBuffer(a, 2, BYTES);
    pipe.InitBuffer(Planted(tiling) ? a : b, 2, BYTES);
}

extern "C" __global__ __aicore__ void no_buffers(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    In queue;
    pipe.InitBuffer(queue, Planted(tiling) ? 0 : 1, BYTES);
}

extern "C" __global__ __aicore__ void never_given(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    LocalTensor<float> x = buffer.Get<float>();
    if (Planted(tiling)) {
        x = LocalTensor<float>();
    }
    Duplicate(x, 1.0f, N);
}

extern "C" __global__ __aicore__ void global_never_given(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Planted(tiling) ? GlobalTensor<float>() : Global(in), N);
}

extern "C" __global__ __aicore__ void strange_address(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    static uint8_t own[4096];
    Global(Planted(tiling) ? own : in);
}

extern "C" __global__ __aicore__ void stale_tensor(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    pipe.InitBuffer(ins, 1, BYTES);
    LocalTensor<float> old = Fetch(ins, in);
    ins.FreeTensor(old);
    LocalTensor<float> x = Fetch(ins, in);
    ins.FreeTensor(Planted(tiling) ? old : x);
}

extern "C" __global__ __aicore__ void free_in_queue(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Out outs;
    pipe.InitBuffer(outs, 1, BYTES);
    LocalTensor<float> y = outs.AllocTensor<float>();
    outs.EnQue(y);
    if (!Planted(tiling)) {
        y = outs.DeQue<float>();
    }
    outs.FreeTensor(y);
}

extern "C" __global__ __aicore__ void index_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    buffer.Get<float>().SetValue(Planted(tiling) ? N + 1 : N - 1, 1.0f);
}

extern "C" __global__ __aicore__ void get_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    Duplicate(buffer.Get<float>(Planted(tiling) ? N + 1 : N), 1.0f, N);
}

extern "C" __global__ __aicore__ void empty_count(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    Duplicate(buffer.Get<float>(), 1.0f, Planted(tiling) ? 0 : 1);
}

extern "C" __global__ __aicore__ void widening_in_place(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    Duplicate(a.Get<bfloat16_t>(), bfloat16_t::From(1.0f), N);
    PipeBarrier<PIPE_V>();
    const LocalTensor<float> wide = (Planted(tiling) ? a : b).Get<float>();
    Cast(wide, a.Get<bfloat16_t>(), RoundMode::CAST_NONE, N);
}

extern "C" __global__ __aicore__ void local_copy_length(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    DataCopy(b.Get<float>(), Filled(a, 1.0f), Planted(tiling) ? 9 : 8);
}

extern "C" __global__ __aicore__ void sum_mask(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sums;
    pipe.InitBuffer(values, 2 * BYTES);
    pipe.InitBuffer(sums, 32);
    WholeReduceSum(sums.Get<float>(), Filled(values, 1.0f), Planted(tiling) ? 65 : 64, 1, 1, 1, 8);
}

extern "C" __global__ __aicore__ void out_of_events(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    const int count = Planted(tiling) ? 9 : 8;
    for (int i = 0; i < count; ++i) {
        pipe.AllocEventID<HardEvent::V_S>();
    }
    for (int i = 0; i < count; ++i) {
        pipe.ReleaseEventID<HardEvent::V_S>(i);
    }
}

extern "C" __global__ __aicore__ void foreign_event(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    const int32_t id = pipe.AllocEventID<HardEvent::V_S>();
    pipe.ReleaseEventID<HardEvent::V_S>(Planted(tiling) ? id + 1 : id);
}

extern "C" __global__ __aicore__ void burst_length(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const uint32_t bytes = Planted(tiling) ? 0 : 4;
    DataCopyPad(buffer.Get<float>(), Global(in), {1, bytes, 0, 0, 0}, {false, 0, 0, 0.0f});
}

extern "C" __global__ __aicore__ void no_pipe(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    if (Planted(tiling)) {
        GetTPipePtr()->FetchEventID(HardEvent::V_S);
    }
    TPipe pipe;
    GetTPipePtr()->FetchEventID(HardEvent::V_S);
}

extern "C" __global__ __aicore__ void scratch_without_buffer(
    GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    (Planted(tiling) ? b : a).Get<float>();
}

extern "C" __global__ __aicore__ void sum_stride(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sums;
    pipe.InitBuffer(values, 2 * BYTES);
    pipe.InitBuffer(sums, 32);
    WholeReduceSum(sums.Get<float>(), Filled(values, 1.0f), 64, 1, 1, Planted(tiling) ? 2 : 1, 8);
}

extern "C" __global__ __aicore__ void tiling_address(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    const GM_ADDR address = Planted(tiling) ? in : tiling;
    GET_TILING_DATA_WITH_STRUCT(Plan, plan, address);
    (void)plan;
}

extern "C" __global__ __aicore__ void empty_copy(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    DataCopy(b.Get<float>(), Filled(a, 1.0f), Planted(tiling) ? 0 : 8);
}
