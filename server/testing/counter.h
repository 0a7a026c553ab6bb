// Lets a test wait for what other threads do.
#ifndef SANTA_SERVER_TESTING_COUNTER_H_
#define SANTA_SERVER_TESTING_COUNTER_H_

#include <condition_variable>
#include <mutex>

namespace santa {

// Counts what is done, and lets a test wait for it.
class Counter {
 public:
  void Add() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  void WaitFor(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }
  int count() {
    std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

}  // namespace santa

#endif  // SANTA_SERVER_TESTING_COUNTER_H_
