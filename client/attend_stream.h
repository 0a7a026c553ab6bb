// AttendStream's inside: the table of unanswered requests, and the gRPC stream that carries them.
#ifndef SANTA_CLIENT_ATTEND_STREAM_H_
#define SANTA_CLIENT_ATTEND_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "client/backoff.h"
#include "client/connection.h"

namespace santa {

// Threads: users call Submit; gRPC's threads call the On... functions; a thread of its own keeps the time of deadlines
// and of reconnection. One mutex guards all state; callbacks run without it.
class AttendStream::Impl {
 public:
  Impl(std::shared_ptr<const client_internal::Connection> connection, const AttendStreamOptions& options);

  void Start();  // the timer thread
  void Close();  // fails what is unanswered, ends the stream, joins
  void Submit(v1::AttendRequest request, absl::Time deadline, Callback done);
  AttendStreamStatistics statistics() const;

 private:
  class Reactor;
  using RequestPointer = std::shared_ptr<const v1::AttendRequest>;

  struct Pending {
    RequestPointer request;
    absl::Time deadline;
    Callback done;
  };
  struct Completion {
    Callback done;
    Result result;
  };

  // Called by the reactor.
  void OnWritten(Reactor& reactor);
  void OnResponse(v1::AttendResponse response);
  void OnReadsEnd();
  void OnStreamEnd(std::unique_ptr<Reactor> reactor, const grpc::Status& status);

  // With the mutex held.
  absl::Status Admit(std::unique_lock<std::mutex>& lock, v1::AttendRequest& request, absl::Time deadline);
  void OpenStream();
  RequestPointer TakeNextToWrite();  // null: nothing to write
  Completion Remove(std::map<uint64_t, Pending>::iterator pending, Result result);
  std::vector<Completion> RemoveAll(const absl::Status& status);
  std::vector<Completion> RemoveExpired(absl::Time now);
  void WakeTimerBy(absl::Time time);

  void RunTimer();
  static void Run(std::vector<Completion> completions);

  const std::shared_ptr<const client_internal::Connection> connection_;
  const AttendStreamOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable room_;          // pending_ shrank, or closed_
  std::condition_variable timer_wakeup_;  // an earlier time to wake at, or closed_
  std::condition_variable stream_ended_;  // ends_running_ shrank

  bool closed_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Pending> pending_;  // unanswered requests by id, that is in the order of submission
  std::set<std::pair<absl::Time, uint64_t>> deadlines_;

  Reactor* reactor_ = nullptr;  // the open stream; owned by gRPC until OnStreamEnd
  int ends_running_ = 0;        // calls of OnStreamEnd
  bool writable_ = false;       // it has not ended as far as we know: a write may start
  bool writing_ = false;        // one is in flight
  uint64_t next_to_write_ = 1;  // ids below were written on the open stream
  uint64_t never_written_ = 1;  // ids below were written on some stream
  client_internal::Backoff backoff_;
  std::optional<absl::Time> reconnect_at_;
  absl::Time timer_wakes_at_ = absl::InfiniteFuture();
  AttendStreamStatistics statistics_;

  std::thread timer_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_ATTEND_STREAM_H_
