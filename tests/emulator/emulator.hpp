// Runs CUDA C++ kernels on the CPU, for tests. x86-64 Linux, g++.
//
// Every CUDA thread is a fiber, the threads of a block share one OS thread, and control changes
// hands only at barriers, warp collectives and __nanosleep. What a GPU leaves open is drawn from a
// seeded schedule, and misuse ends the launch with an exception that names file, line, thread and
// block:
//   fiber.hpp       stacks and the switch between them
//   block.hpp       the state of threads and blocks, failures
//   sync.hpp        barriers and warp collectives
//   scheduler.hpp   schedules, deadlocks, launch
//   shared_arena.hpp, intrinsics.hpp, matrix.hpp   what kernels call
//   runtime.hpp     what the host calls, with errors on demand
// Under -fsanitize=thread only barriers order the threads, so every race between two kernel
// accesses shows; under -fsanitize=address the arrays of a SharedArena have red zones around them.
// Approximate instructions err by as much as they may. Not modelled: the memory hierarchy,
// execution in lockstep, the timing.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#undef __forceinline__ // instrumented code is slow to compile: not a copy of it in every caller
#define __forceinline__ inline
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "take shared memory from a SharedArena");

#include "block.hpp"
#include "fiber.hpp"
#include "runtime.hpp"
#include "sanitizers.hpp"
#include "scheduler.hpp"
#include "shared_arena.hpp"
#include "sync.hpp"

#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::current->block->index)
#define blockDim (::emulator::current->block->shape)
#define gridDim (::emulator::current->block->grid)

#include "intrinsics.hpp"
#include "matrix.hpp"
