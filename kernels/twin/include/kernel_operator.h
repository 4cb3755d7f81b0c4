// The host twin of the Ascend C API: an Ascend C kernel that includes "kernel_operator.h" compiles
// with g++ against this folder, unchanged, and every call of it is checked as it runs.
//
// Written from the public documentation of the API; nothing is copied from CANN.
// What is not declared here does not exist on the twin: the kernel does not compile.
#pragma once

#include <cstdint>

#define ASCENDC_HOST_TWIN 1 // for headers that host code shares
#define __aicore__
#define __gm__
// The library hides every other symbol, so two twins in one process cannot share state.
#define __global__ __attribute__((visibility("default")))

using GM_ADDR = __gm__ uint8_t *;

#include "twin/types.h"

#include "twin/fault.h"

#include "twin/clock.h"

#include "twin/memory.h"

#include "twin/machine.h"

#include "twin/tensor.h"

#include "twin/queue.h"

#include "twin/sync.h"

#include "twin/copy.h"

#include "twin/vector.h"

#include "twin/reduce.h"

#include "twin/tiling.h"
