// One client of the load: a connection, its sequences, and a stream on which it keeps steps going; or, of the last
// options.prefill_clients, one that uploads prompts.
#ifndef SANTA_CLIENT_BENCH_LOAD_CLIENT_H_
#define SANTA_CLIENT_BENCH_LOAD_CLIENT_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/attention_client.h"
#include "client/bench/load_counts.h"
#include "client/bench/load_options.h"
#include "client/bench/load_window.h"
#include "client/bench/step_source.h"

namespace santa::bench {

class LoadClient {
 public:
  // `index` tells the clients of a load apart. Errors as of AttentionClient::Connect.
  static absl::StatusOr<std::unique_ptr<LoadClient>> Connect(const LoadOptions& options, int64_t index);
  ~LoadClient();  // releases its sequences
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  const v1::ServerInfo& info() const { return client_->info(); }

  // Makes the sequences and stores their tokens in each layer that steps go through: runs of k and v, [tokens, H_kv,
  // D], each from a random token on, so that no two pages are alike; both outlive the client. CANCELLED when `stop`
  // became true.
  absl::Status Prepare(const TensorView& k, const TensorView& v, const std::atomic<bool>& stop);

  // After Prepare: sends steps until window.end, then waits for their answers, up to 10 seconds. May be called again.
  //
  // Closed loop: an answered step is followed by the next at once, from the library's thread; one that failed, after 10
  // ms. A step begins when its message is ready and handed to the stream; one that is placed, as long before its
  // tensors are written as it took to make room for them. Open loop: steps begin at the arrivals of a Poisson process,
  // sent or not, and do not wait for one another. A client that uploads: each prompt, in a sequence of its own that is
  // then released, is followed by the next.
  void Run(const LoadWindow& window);

  // Sends one step and waits: what its messages look like. Of a client that decodes.
  struct Exchange {
    v1::AttendRequest request;
    v1::AttendResponse response;
  };
  absl::StatusOr<Exchange> SendOne();

  // Thread safe.
  LoadCounts counts() const;

 private:
  struct Flight {  // a step that is not answered
    Clock::time_point intended;
    Clock::time_point sent;
    uint32_t layer = 0;
    int64_t appended = 0;
  };

  LoadClient(const LoadOptions& options, int64_t index, std::unique_ptr<AttentionClient> client);

  std::unique_ptr<AttendStream> OpenStream();
  bool uploads() const { return index_ >= options_.decode_clients(); }
  v1::CreateSequenceRequest NewSequence(int64_t sequence) const;
  int64_t MostTokens() const { return std::max<int64_t>(1, k_.shape[0] / 2); }        // of a run
  std::vector<KvChunk> Chunks(int64_t sequence, int64_t tokens, int64_t most) const;  // of all layers

  void RunUploads(const LoadWindow& window);
  void RunClosedLoop(const LoadWindow& window);
  void RunOpenLoop(const LoadWindow& window);
  void SubmitNext(const LoadWindow& window);  // of the closed loop
  // The next step, made ready to be sent.
  struct Ready {
    LoadStep step;
    std::optional<absl::StatusOr<PlacedStep>> placed;  // with options.in_place
    Clock::duration making_room = {};                  // which is the library's work
  };
  Ready MakeReady();
  void Submit(Ready ready, Clock::time_point intended, const LoadWindow& window);
  void OnAnswer(const Flight& flight, const absl::StatusOr<AttendAnswer>& answer, const LoadWindow& window);
  // With the mutex held.
  void CountAnswered(const Flight& flight, Clock::time_point now, const AttendAnswer& answer, const LoadWindow& window);
  void CountFailed(const absl::StatusOr<AttendAnswer>& answer);

  const LoadOptions options_;
  const int64_t index_;
  const std::unique_ptr<AttentionClient> client_;
  std::mt19937_64 arrivals_;
  std::vector<OwnedSequence> sequences_;
  std::unique_ptr<StepSource> source_;
  TensorView k_;
  TensorView v_;
  int64_t prompts_ = 0;  // begun

  std::mutex submit_mutex_;  // held from a step's position to its submission: appends must be sent in order
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // in_flight_ or idle_slots_
  LoadCounts counts_;
  int64_t in_flight_ = 0;
  int64_t idle_slots_ = 0;  // closed loop: steps that RunClosedLoop is to submit

  std::unique_ptr<AttendStream> stream_;  // the last member: its callbacks use the others
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_CLIENT_H_
