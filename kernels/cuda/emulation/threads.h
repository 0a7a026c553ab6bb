// CUDA's threads as fibers: what the code of a kernel asks of the emulated GPU.
#ifndef SANTA_KERNELS_CUDA_EMULATION_THREADS_H_
#define SANTA_KERNELS_CUDA_EMULATION_THREADS_H_

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace santa::emulation {

struct Block;
struct Warp;

struct Thread {
  void* stack = nullptr;  // where it goes on
  Warp* warp = nullptr;
  int lane = 0;
  uint3 threadIdx = {}, blockIdx = {};
  dim3 blockDim, gridDim;
};

// The one that runs.
extern Thread* current;

// What a kernel was launched with.
struct Kernel {
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  bool overlaps = false;  // may start while the one before it still runs
  const void* function = nullptr;
  std::function<void()> body;
};

// Runs a kernel to its end. `next` gives the kernel behind it in its stream where that may overlap, else null; it is
// run as well. False where a thread touched memory that is not there; then all have been given up.
bool RunKernels(std::shared_ptr<const Kernel> kernel, const std::function<std::shared_ptr<const Kernel>()>& next);

// Random bits of the seed in the environment's SANTA_EMULATION_SEED.
extern uint64_t random_state;
inline uint32_t Random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}
inline bool OneIn(uint32_t n) { return Random() % n == 0; }

// Says what is wrong with the code that runs, and ends the program.
[[noreturn]] void Fail(const char* what);

// Waits for the lanes of `mask`; the last one calls `combine` (if any) with what each lane brings.
using Combine = void (*)(void* const* of_lane, uint32_t mask);
void MeetWarp(uint32_t mask, void* mine, Combine combine);

// Waits for all threads of the block that have not ended; whether one of them brings true.
bool MeetBlock(bool mine);

// Lets other warps run, as the hardware may anywhere. waiting: nothing happens until they have.
void GiveWay(bool waiting);
inline void MayGiveWay() {
  if (OneIn(16)) GiveWay(false);
}

// What a kernel does in a loop until another block has written it.
template <typename T>
T ReadVolatile(const volatile T* from) {
  GiveWay(true);
  return *from;
}

void WaitForEarlierKernel();
void LetLaterKernelStart();

void* DynamicShared();
void* Shared(const char* name, size_t bytes);
size_t SharedOffset(const void* pointer);
uint8_t* SharedPointer(uint32_t offset, size_t bytes);

// Asynchronous copies: each happens somewhere between its start and the wait for it.
void StartCopy(uint32_t to, const void* from, int bytes, int bytes_read);
void CommitCopies();
void WaitForCopies(int pending_groups);
void WaitForAllCopies();

// A variable of the block.
struct StaticShared {
  const char* name;
  template <typename T>
  operator T&() const {  // NOLINT(google-explicit-constructor): it initializes a reference
    return *static_cast<T*>(Shared(name, sizeof(T)));
  }
};

}  // namespace santa::emulation

#endif  // SANTA_KERNELS_CUDA_EMULATION_THREADS_H_
