#include "kernels/cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace santa::cpu {
namespace {

constexpr int kSpins = 2000;  // pauses: 20 to 100 us

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  threads_.reserve(num_threads - 1);
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(const Job& job) {
  if (threads_.empty() || !shares_loops_ || job.count <= 1) {
    for (int64_t index = 0; index < job.count; ++index) job.call(job.context, index, 0);
    return;
  }
  bool wake = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    open_ = true;
    wake = num_sleeping_ > 0;
    generation_.fetch_add(1, std::memory_order_release);
  }
  if (wake) work_.notify_all();
  Work(job, 0);
  // A thread that did not wake in time finds the job closed and leaves it alone; only those inside are waited for.
  std::unique_lock<std::mutex> lock(mutex_);
  open_ = false;
  if (num_active_.load(std::memory_order_relaxed) == 0) return;
  lock.unlock();
  for (int spin = 0; spin < kSpins && num_active_.load(std::memory_order_acquire) > 0; ++spin) Pause();
  lock.lock();
  finished_.wait(lock, [this] { return num_active_.load(std::memory_order_relaxed) == 0; });
}

void ThreadPool::Work(const Job& job, int worker) {
  for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < job.count;) {
    job.call(job.context, index, worker);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint64_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) Pause();
    std::unique_lock<std::mutex> lock(mutex_);
    ++num_sleeping_;
    work_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    --num_sleeping_;
    seen = generation_.load(std::memory_order_relaxed);
    if (stop_) return;
    if (!open_) continue;
    num_active_.fetch_add(1, std::memory_order_relaxed);
    const Job job = job_;
    lock.unlock();
    Work(job, worker);
    lock.lock();
    if (num_active_.fetch_sub(1, std::memory_order_release) == 1) finished_.notify_one();
  }
}

}  // namespace santa::cpu
