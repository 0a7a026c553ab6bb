// A small pool of persistent threads for loops of a few microseconds to a few milliseconds.
#ifndef SANTA_KERNELS_CPU_THREAD_POOL_H_
#define SANTA_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace santa::cpu {

// Idle threads spin for some tens of microseconds, so that the loops of one decode step follow each other without a
// system call, and then sleep.
// Not thread safe: one call is made at a time. Whoever makes it takes part in the work, as worker 0.
class ThreadPool {
 public:
  // num_threads >= 1, the caller's among them; num_threads - 1 are started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // false: from now on loops run on the caller's thread alone, as waking another one would take longer than they do.
  void ShareLoops(bool share) { shares_loops_ = share; }

  // Calls body(index, worker) once for every index in [0, count), in any order; worker in [0, num_threads()) is never
  // in two calls at once. Returns when every call has. body must not throw, nor call ParallelFor.
  template <typename Body>
  void ParallelFor(int64_t count, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    Run({[](void* context, int64_t index, int worker) { (*static_cast<Callable*>(context))(index, worker); },
         const_cast<void*>(static_cast<const void*>(&body)), count});
  }

 private:
  struct Job {
    void (*call)(void* context, int64_t index, int worker) = nullptr;
    void* context = nullptr;
    int64_t count = 0;
  };

  void Run(const Job& job);
  void Work(const Job& job, int worker);
  void WorkerLoop(int worker);

  bool shares_loops_ = true;  // the caller's
  std::mutex mutex_;
  std::condition_variable work_;         // a job was opened, or stop_
  std::condition_variable finished_;     // num_active_ fell to 0
  Job job_;                              // under mutex_
  bool open_ = false;                    // under mutex_: a thread may still join job_
  int num_sleeping_ = 0;                 // under mutex_
  bool stop_ = false;                    // under mutex_
  std::atomic<uint64_t> generation_{0};  // of job_; written under mutex_
  std::atomic<int> num_active_{0};       // threads inside job_, the caller's aside; written under mutex_
  std::atomic<int64_t> next_{0};         // the next index of job_
  std::vector<std::thread> threads_;
};

}  // namespace santa::cpu

#endif  // SANTA_KERNELS_CPU_THREAD_POOL_H_
