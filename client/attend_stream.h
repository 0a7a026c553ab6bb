// AttendStream's inside: the table of unanswered requests, and what carries them.
#ifndef SANTA_CLIENT_ATTEND_STREAM_H_
#define SANTA_CLIENT_ATTEND_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "client/attend_carrier.h"
#include "client/attention_client.h"
#include "client/backoff.h"
#include "client/client_ring.h"
#include "client/connection.h"

namespace santa {

// Threads: users call Submit; the carrier's threads call the On... functions; a thread of its own keeps the time of
// deadlines and of reconnection. One mutex guards all state; callbacks run without it.
class AttendStream::Impl : public client_internal::CarrierOwner {
 public:
  Impl(std::shared_ptr<const client_internal::Connection> connection, const AttendStreamOptions& options);

  void Start();  // the timer thread
  void Close();  // fails what is unanswered, ends the stream, joins
  void Submit(v1::AttendRequest request, absl::Time deadline, Callback done);
  absl::StatusOr<PlacedStep> Place(const v1::AttendRequest& request);
  void Submit(std::unique_ptr<client_internal::PlacedRequest> request, absl::Time deadline, PlacedCallback done);
  AttendStreamStatistics statistics() const;

 private:
  using AttendCarrier = client_internal::AttendCarrier;
  using PlacedRequest = client_internal::PlacedRequest;
  using RequestPointer = client_internal::RequestPointer;
  using Done = std::function<void(absl::StatusOr<AttendAnswer>)>;

  struct Pending {
    RequestPointer request;                 // or null
    std::unique_ptr<PlacedRequest> placed;  // in a ring, or null
    int items = 0;
    absl::Time deadline;
    Done done;
  };
  struct Completion {
    Done done;
    absl::StatusOr<AttendAnswer> result;
    RequestPointer request = nullptr;  // goes after the callback: to free a large one takes longer than to answer
  };

  void OnOpened() override;
  void OnWritten() override;
  void OnAnswer(AttendAnswer answer) override;
  void OnReadsEnd() override;
  void OnEnd(std::unique_ptr<AttendCarrier> carrier, const grpc::Status& status) override;

  // `make` makes the request of its id, once it is admitted.
  template <typename Make>
  void Submit(size_t bytes, absl::Time deadline, Done done, Make make);
  // With the mutex held.
  absl::Status CheckSize(size_t bytes) const;
  absl::Status Admit(std::unique_lock<std::mutex>& lock, size_t bytes, absl::Time deadline);
  void OpenStream();
  void WriteNext();  // as much as may be written now
  void GoOn();       // that, or ends the writes
  bool Write(uint64_t id, Pending& pending);
  bool ChooseAnother(const AttendCarrier& carrier, const grpc::Status& status);
  size_t MostSlotBytes() const;
  Completion Remove(std::map<uint64_t, Pending>::iterator pending, absl::StatusOr<AttendAnswer> result);
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

  AttendCarrier* carrier_ = nullptr;  // the open stream; owned by itself until OnEnd
  int ends_running_ = 0;              // calls of OnEnd
  bool shares_memory_;                // the next stream is to
  size_t largest_request_ = 0;        // bytes
  bool writable_ = false;             // it is open and has not ended as far as we know: a write may start
  bool writing_ = false;              // one is in flight
  uint64_t next_to_write_ = 1;        // ids below were written on the open stream
  uint64_t never_written_ = 1;        // ids below were written on some stream
  client_internal::Backoff backoff_;
  std::optional<absl::Time> reconnect_at_;
  absl::Time timer_wakes_at_ = absl::InfiniteFuture();
  AttendStreamStatistics statistics_;

  std::thread timer_;
};

}  // namespace santa

#endif  // SANTA_CLIENT_ATTEND_STREAM_H_
