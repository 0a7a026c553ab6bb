#include "kernels/cuda/emulation/threads.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cuda/emulation/fiber.h"

namespace santa::emulation {

Thread* current = nullptr;
uint64_t random_state = [] {
  const char* const seed = std::getenv("SANTA_EMULATION_SEED");
  return 0x9e3779b97f4a7c15u * (1 + (seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10)));
}();

namespace {

constexpr int kMostBlocks = 8;      // that run at once
constexpr int kMostThreads = 1024;  // of a block
constexpr size_t kStackBytes = 64 * 1024, kSharedBytes = 227 * 1024;
constexpr size_t kFirstShared = 1024, kGap = 512;    // before the dynamic shared memory, and after it
constexpr size_t kArenaBytes = kSharedBytes + 4096;  // with the gaps
constexpr int kMostIdle = 1 << 22;                   // times in a row that all only wait
constexpr uint8_t kNothing = 0xff;                   // bytes nobody has written: a NaN in every type

struct Copy {
  uint8_t* to;
  const void* from;
  int bytes, bytes_read;
  int group;
};

// What asynchronous copies a thread has started, the earliest first.
struct Copies {
  std::vector<Copy> pending;
  int group = 0;  // that the next one belongs to

  void Finish(int before_group) {
    size_t count = 0;
    for (; count < pending.size() && pending[count].group < before_group; ++count) Do(pending[count]);
    pending.erase(pending.begin(), pending.begin() + count);
  }
  static void Do(const Copy& copy) {
    if (copy.bytes_read > 0) std::memcpy(copy.to, copy.from, copy.bytes_read);
    std::memset(copy.to + copy.bytes_read, 0, copy.bytes - copy.bytes_read);
  }
};

// Lanes on their way to the same operation.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Combine combine = nullptr;
};

struct Grid {
  std::shared_ptr<const Kernel> kernel;
  std::shared_ptr<Grid> earlier;
  uint64_t count = 0, started = 0, released = 0, ended = 0;
  bool may_overlap = false;  // with a later one

  bool done() const { return ended == count; }
};

}  // namespace

struct Warp {
  Block* block = nullptr;
  uint32_t exists = 0, ready = 0, ended = 0;
  uint32_t at_barrier = 0, at_earlier_kernel = 0;
  bool listed = false;  // among those that can run
  Meeting meetings[4];
  void* brought[32] = {};
  Thread threads[32];
  Copies copies[32];
};

struct Block {
  Grid* grid = nullptr;
  uint3 index = {};
  int number = 0;
  uint8_t* arena = nullptr;
  uint8_t* stacks = nullptr;
  size_t shared_end = 0;
  std::vector<std::pair<std::string_view, size_t>> variables;
  int num_warps = 0, live = 0, arrived = 0;
  bool any = false, result = false, released = false;
  std::vector<Warp> warps{kMostThreads / 32};
};

namespace {

uint8_t* Map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) Fail("no memory");
  return static_cast<uint8_t*>(memory);
}

class Gpu {
 public:
  Gpu() {
    for (int i = 0; i < kMostBlocks; ++i) {
      blocks_[i].number = i;
      blocks_[i].arena = Map(kArenaBytes);
      blocks_[i].stacks = Map(kStackBytes * kMostThreads);
      free_.push_back(&blocks_[i]);
    }
    // A stray access is to be a kernel's error, as on a GPU, and not the end of the program.
    struct sigaction action = {};
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    action.sa_handler = +[](int signal) {
      if (current == nullptr) {
        ::signal(signal, SIG_DFL);
        return;
      }
      TheGpu().faulted_ = true;
      TheGpu().Describe("a thread touched memory that is not there");
      void* nowhere = nullptr;
      TheGpu().SwitchTo(&nowhere, nullptr);
    };
    sigaction(SIGSEGV, &action, nullptr);
  }

  bool Run(std::shared_ptr<const Kernel> kernel, const std::function<std::shared_ptr<const Kernel>()>& next) {
    static thread_local uint8_t signal_stack[64 * 1024];
    const stack_t of_signals = {.ss_sp = signal_stack, .ss_flags = 0, .ss_size = sizeof(signal_stack)};
    sigaltstack(&of_signals, nullptr);
    Add(std::move(kernel));
    while (!grids_.empty()) {
      bool progress = false;
      while (!grids_.empty() && grids_.front()->done()) grids_.pop_front();
      if (grids_.empty()) break;
      const Grid& youngest = *grids_.back();
      if (youngest.may_overlap && youngest.started == youngest.count && youngest.released == youngest.count) {
        grids_.back()->may_overlap = false;
        if (std::shared_ptr<const Kernel> later = next()) Add(std::move(later));
        progress = true;
      }
      Grid& grid = *grids_.back();
      for (; static_cast<int>(free_.size()) > kMostBlocks - at_once_ && grid.started < grid.count; progress = true) {
        StartBlock(grid);
      }
      if (Thread* thread = Pick()) {
        progress = true;
        SwitchTo(&main_stack_, thread);
      }
      if (faulted_) return false;
      for (; !finished_.empty(); progress = true) {
        EndBlock(*finished_.back());
        finished_.pop_back();
      }
      if (!progress) Report("nothing can go on");
    }
    return true;
  }

  // Gives the processor to another thread until this one is ready again.
  void Suspend() {
    Thread* me = current;
    Thread* next = finished_.empty() ? Pick() : nullptr;
    if (next != me) SwitchTo(&me->stack, next);
  }

  void MakeReady(Warp& warp, uint32_t lanes) {
    warp.ready |= lanes;
    if (&warp != running_ && !warp.listed && warp.ready != 0) {
      warp.listed = true;
      ready_.push_back(&warp);
    }
    idle_ = 0;
  }

  void GiveWay(bool waiting) {
    Warp& warp = *current->warp;
    warp.ready |= 1u << current->lane;
    if (waiting && ++idle_ > kMostIdle) Report("all wait for what does not come");
    if (!ready_.empty()) {
      running_ = PickWarp();
      warp.listed = true;
      ready_.push_back(&warp);
    }
    Suspend();
  }

  void EndThread() {
    Thread& me = *current;
    Warp& warp = *me.warp;
    Block& block = *warp.block;
    warp.copies[me.lane].Finish(INT32_MAX);
    const size_t number = (&warp - block.warps.data()) * 32 + me.lane;
    if (block.stacks[kStackBytes * number] != 0) Fail("the stack is too small");
    warp.ended |= 1u << me.lane;
    for (const Meeting& meeting : warp.meetings) {
      if (meeting.mask >> me.lane & 1) Fail("a lane ends that others wait for");
    }
    if (--block.live == 0) {
      finished_.push_back(&block);
    } else {
      OpenBarrier(block);
    }
    Suspend();
  }

  void OpenBarrier(Block& block) {
    if (block.arrived < block.live || block.arrived == 0) return;
    block.result = block.any;
    block.any = false;
    block.arrived = 0;
    for (int i = 0; i < block.num_warps; ++i) {
      Warp& warp = block.warps[i];
      const uint32_t lanes = std::exchange(warp.at_barrier, 0);
      MakeReady(warp, lanes);
    }
  }

  void Release(Block& block) {
    if (block.released) return;
    block.released = true;
    ++block.grid->released;
  }

  void Describe(const char* what) {
    std::fprintf(stderr, "emulated GPU: %s\n", what);
    if (current == nullptr) return;
    std::fprintf(stderr, "thread %u of block (%u, %u) of kernel %p\n", current->threadIdx.x, current->blockIdx.x,
                 current->blockIdx.y, current->warp->block->grid->kernel->function);
  }

  [[noreturn]] void Report(const char* what) {
    Describe(what);
    for (const Block& block : blocks_) {
      if (block.live == 0) continue;
      std::fprintf(stderr, "block (%u, %u) of kernel %p:\n", block.index.x, block.index.y,
                   block.grid->kernel->function);
      for (int i = 0; i < block.num_warps; ++i) {
        const Warp& warp = block.warps[i];
        std::fprintf(stderr, "  warp %d: ended %08x, ready %08x, at the barrier %08x, at the earlier kernel %08x", i,
                     warp.ended, warp.ready, warp.at_barrier, warp.at_earlier_kernel);
        for (const Meeting& meeting : warp.meetings) {
          if (meeting.mask != 0) std::fprintf(stderr, ", %08x of %08x meet", meeting.arrived, meeting.mask);
        }
        std::fprintf(stderr, "\n");
      }
    }
    std::abort();
  }

 private:
  void Add(std::shared_ptr<const Kernel> kernel) {
    auto grid = std::make_shared<Grid>();
    grid->count = static_cast<uint64_t>(kernel->grid.x) * kernel->grid.y * kernel->grid.z;
    grid->earlier = grids_.empty() ? nullptr : grids_.back();
    grid->may_overlap = !OneIn(4);
    grid->kernel = std::move(kernel);
    grids_.push_back(std::move(grid));
    at_once_ = 1 + static_cast<int>(Random() % kMostBlocks);
  }

  void StartBlock(Grid& grid) {
    Block& block = *free_.back();
    free_.pop_back();
    const Kernel& kernel = *grid.kernel;
    const auto number = static_cast<unsigned>(grid.started++);
    block.grid = &grid;
    block.index = {number % kernel.grid.x, number / kernel.grid.x % kernel.grid.y,
                   number / kernel.grid.x / kernel.grid.y};
    block.live = static_cast<int>(kernel.block.x);
    block.num_warps = (block.live + 31) / 32;
    block.arrived = 0;
    block.any = block.released = false;
    block.variables.clear();
    block.shared_end = kFirstShared + kernel.dynamic_bytes + kGap;
    std::memset(block.arena, kNothing, block.shared_end);
    for (int i = 0; i < block.num_warps; ++i) {
      Warp& warp = block.warps[i];
      warp.block = &block;
      warp.exists = block.live - 32 * i >= 32 ? ~0u : (1u << (block.live - 32 * i)) - 1;
      warp.ready = warp.ended = 0;
      for (int lane = 0; lane < 32 && (warp.exists >> lane & 1); ++lane) StartThread(warp, 32 * i + lane);
      MakeReady(warp, warp.exists);
    }
  }

  void StartThread(Warp& warp, unsigned number) {
    Thread& thread = warp.threads[number % 32];
    const Kernel& kernel = *warp.block->grid->kernel;
    thread.warp = &warp;
    thread.threadIdx = {number, 0, 0};
    thread.blockIdx = warp.block->index;
    thread.blockDim = kernel.block;
    thread.gridDim = kernel.grid;
    thread.lane = static_cast<int>(number % 32);
    // Not all at the same place of a page, and so of the processor's cache.
    uint8_t* top = warp.block->stacks + kStackBytes * (number + 1) - number * 9 % 64 * 64;
    thread.stack = PrepareStack(
        top, +[] {
          current->warp->block->grid->kernel->body();
          TheGpu().EndThread();
        });
  }

  void EndBlock(Block& block) {
    const size_t end = kFirstShared + block.grid->kernel->dynamic_bytes;
    for (size_t i = 0; i < kGap; ++i) {
      if (block.arena[end + i] != kNothing) Report("a block wrote past the end of its shared memory");
    }
    Release(block);
    Grid& grid = *block.grid;
    free_.push_back(&block);
    if (++grid.ended < grid.count) return;
    for (Block& waiting : blocks_) {
      if (waiting.live == 0 || waiting.grid->earlier.get() != &grid) continue;
      for (int i = 0; i < waiting.num_warps; ++i) {
        MakeReady(waiting.warps[i], std::exchange(waiting.warps[i].at_earlier_kernel, 0));
      }
    }
  }

  Warp* PickWarp() {
    const size_t at = Random() % ready_.size();
    Warp* warp = ready_[at];
    ready_[at] = ready_.back();
    ready_.pop_back();
    warp->listed = false;
    return warp;
  }

  Thread* Pick() {
    if (running_ == nullptr || running_->ready == 0) {
      running_ = ready_.empty() ? nullptr : PickWarp();
      if (running_ == nullptr) return nullptr;
    }
    const int turn = static_cast<int>(Random() % 32);
    const int lane = (std::countr_zero(std::rotr(running_->ready, turn)) + turn) % 32;
    running_->ready &= ~(1u << lane);
    return &running_->threads[lane];
  }

  // Null: to Run().
  void SwitchTo(void** from, Thread* thread) {
    current = thread;
    SantaSwitchStack(from, thread == nullptr ? main_stack_ : thread->stack);
  }

  static Gpu& TheGpu();

  Block blocks_[kMostBlocks];
  std::vector<Block*> free_, finished_;
  std::deque<std::shared_ptr<Grid>> grids_;
  std::vector<Warp*> ready_;
  Warp* running_ = nullptr;
  void* main_stack_ = nullptr;
  int at_once_ = 1, idle_ = 0;
  bool faulted_ = false;
};

Gpu& TheGpu() {
  static auto* const gpu = new Gpu;
  return *gpu;
}
Gpu& Gpu::TheGpu() { return emulation::TheGpu(); }

Block& BlockOf(const Thread& thread) { return *thread.warp->block; }

}  // namespace

void Fail(const char* what) { TheGpu().Report(what); }

bool RunKernels(std::shared_ptr<const Kernel> kernel, const std::function<std::shared_ptr<const Kernel>()>& next) {
  return TheGpu().Run(std::move(kernel), next);
}

void MeetWarp(uint32_t mask, void* mine, Combine combine) {
  Warp& warp = *current->warp;
  const uint32_t me = 1u << current->lane;
  mask &= warp.exists;
  if ((mask & me) == 0) Fail("a lane is not among those that it waits for");
  if ((mask & warp.ended) != 0) Fail("a lane is waited for that has ended");
  warp.brought[current->lane] = mine;
  Meeting* meeting = warp.meetings;
  if (meeting->mask != mask) {
    meeting = nullptr;
    for (Meeting& one : warp.meetings) {
      if (one.mask == mask) {
        meeting = &one;
        break;
      }
      if ((one.mask & mask) != 0) Fail("lanes wait for one another by different masks");
      if (one.mask == 0 && meeting == nullptr) meeting = &one;
    }
    if (meeting == nullptr) Fail("more meetings of a warp than there is room for");
    if (meeting->mask == 0) *meeting = {mask, 0, combine};
  }
  if (meeting->combine != combine) Fail("lanes meet at different operations");
  meeting->arrived |= me;
  if (meeting->arrived == mask) {
    *meeting = {};
    if (combine != nullptr) combine(warp.brought, mask);
    TheGpu().MakeReady(warp, mask);
  }
  TheGpu().Suspend();
}

bool MeetBlock(bool mine) {
  Block& block = BlockOf(*current);
  block.any |= mine;
  ++block.arrived;
  current->warp->at_barrier |= 1u << current->lane;
  TheGpu().OpenBarrier(block);
  TheGpu().Suspend();
  return block.result;
}

void GiveWay(bool waiting) { TheGpu().GiveWay(waiting); }

void WaitForEarlierKernel() {
  const Grid* const earlier = BlockOf(*current).grid->earlier.get();
  if (earlier == nullptr || earlier->done()) return;
  current->warp->at_earlier_kernel |= 1u << current->lane;
  TheGpu().Suspend();
}

void LetLaterKernelStart() { TheGpu().Release(BlockOf(*current)); }

void* DynamicShared() { return BlockOf(*current).arena + kFirstShared; }

void* Shared(const char* name, size_t bytes) {
  Block& block = BlockOf(*current);
  for (const auto& [other, offset] : block.variables) {
    if (other == name) return block.arena + offset;
  }
  const size_t offset = (block.shared_end + 127) / 128 * 128;
  if (offset + bytes > kFirstShared + kSharedBytes) Fail("a block has more shared memory than there is");
  block.shared_end = offset + bytes;
  block.variables.emplace_back(name, offset);
  std::memset(block.arena + offset, kNothing, bytes);
  return block.arena + offset;
}

size_t SharedOffset(const void* pointer) {
  const Block& block = BlockOf(*current);
  const size_t offset = static_cast<const uint8_t*>(pointer) - block.arena;
  if (offset >= block.shared_end) Fail("an address is not in shared memory");
  return offset;
}

uint8_t* SharedPointer(uint32_t offset, size_t bytes) {
  const Block& block = BlockOf(*current);
  if (offset < kFirstShared || offset + bytes > block.shared_end) Fail("outside of shared memory");
  if (offset % bytes != 0) Fail("a misaligned address in shared memory");
  return block.arena + offset;
}

void StartCopy(uint32_t to, const void* from, int bytes, int bytes_read) {
  Copies& copies = current->warp->copies[current->lane];
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) Fail("a copy from a misaligned address");
  const Copy copy = {SharedPointer(to, bytes), from, bytes, bytes_read, copies.group};
  if (OneIn(4)) {
    Copies::Do(copy);
  } else {
    copies.pending.push_back(copy);
  }
}

void CommitCopies() { ++current->warp->copies[current->lane].group; }

void WaitForCopies(int pending_groups) {
  Copies& copies = current->warp->copies[current->lane];
  copies.Finish(copies.group - pending_groups);
}

void WaitForAllCopies() {
  CommitCopies();
  WaitForCopies(0);
}

}  // namespace santa::emulation
