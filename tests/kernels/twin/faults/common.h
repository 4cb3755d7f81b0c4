// Kernels with one fault each that the twin must find, and without it when tiling is 0: so every
// check is seen to pass and to fail. `in` and `out` hold 1024 floats; N of them are worked on.
#pragma once

#include "kernel_operator.h"

using namespace AscendC;

constexpr uint32_t N = 64;
constexpr uint32_t BYTES = N * sizeof(float);

using In = TQue<TPosition::VECIN, 1>;
using Out = TQue<TPosition::VECOUT, 1>;
using Scratch = TBuf<TPosition::VECCALC>;

struct Plan {
    int32_t fault;
};

inline bool Planted(GM_ADDR tiling)
{
    GET_TILING_DATA_WITH_STRUCT(Plan, plan, tiling);
    return plan.fault != 0;
}

inline GlobalTensor<float> Global(GM_ADDR address, uint32_t begin = 0)
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

inline LocalTensor<float> Fetch(In &queue, GM_ADDR in)
{
    LocalTensor<float> tensor = queue.AllocTensor<float>();
    DataCopy(tensor, Global(in), N);
    queue.EnQue(tensor);
    return queue.DeQue<float>();
}

inline void Send(Out &queue, LocalTensor<float> tensor, GM_ADDR out)
{
    queue.EnQue(tensor);
    tensor = queue.DeQue<float>();
    DataCopy(Global(out), tensor, N);
    queue.FreeTensor(tensor);
}

inline LocalTensor<float> Filled(Scratch &buffer, float value)
{
    const LocalTensor<float> tensor = buffer.Get<float>();
    Duplicate(tensor, value, static_cast<int32_t>(tensor.GetSize()));
    PipeBarrier<PIPE_V>();
    return tensor;
}
