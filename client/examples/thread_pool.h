#ifndef SANTA_CLIENT_EXAMPLES_THREAD_POOL_H_
#define SANTA_CLIENT_EXAMPLES_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace santa {

// Threads that share out the iterations of one loop at a time.
class ThreadPool {
 public:
  // The caller of ParallelFor is one of the threads. 0: one for each CPU.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls body(0) .. body(count - 1), in any order, and returns when all are done. One caller at a time.
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body);

 private:
  void Work();
  void RunIterations();

  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  int busy_ = 0;        // threads that have not finished the loop
  uint64_t round_ = 0;  // counts loops, so that a thread joins each of them once
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_THREAD_POOL_H_
