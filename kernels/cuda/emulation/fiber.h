// The stack of a function that gives way to others and goes on later, all on one thread of the operating system.
#ifndef SANTA_KERNELS_CUDA_EMULATION_FIBER_H_
#define SANTA_KERNELS_CUDA_EMULATION_FIBER_H_

#include <cstdint>

// Leaves the stack at hand, whose place goes to *from, for another one. For one source file alone.
extern "C" void SantaSwitchStack(void** from, void* to);
asm(R"(
.pushsection .text
SantaSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.popsection
)");

namespace santa::emulation {

// A stack that ends at `top`, prepared so that switching to it calls `entry`, which does not return.
inline void* PrepareStack(uint8_t* top, void (*entry)()) {
  auto** slot = reinterpret_cast<void**>(top - reinterpret_cast<uintptr_t>(top) % 16);
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
  return slot;
}

}  // namespace santa::emulation

#endif  // SANTA_KERNELS_CUDA_EMULATION_FIBER_H_
