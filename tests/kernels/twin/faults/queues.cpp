// Queues, and misuse of the objects of the API.
#include "common.h"

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
