// A test double of the attention server with faults on demand. It keeps every token in plain memory, obeys the API's
// exactly-once rule and computes exact attention naively (for few and small heads); it answers on a real socket.
#ifndef SANTA_CLIENT_TESTING_FAKE_ATTENTION_SERVER_H_
#define SANTA_CLIENT_TESTING_FAKE_ATTENTION_SERVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::client_testing {

// All off by default. Counts are of the server's life, across streams.
struct Faults {
  // The first `broken_attend_streams` Attend streams end with `break_code` on the request that follows
  // `requests_before_break` others. Every second one of them takes that request's tokens first, so that only the answer
  // is lost; the answers not yet sent are lost in any case.
  int broken_attend_streams = 0;
  int requests_before_break = 0;
  int break_code = 14;  // google.rpc.Code; UNAVAILABLE

  // Likewise for AppendKv, counted in messages.
  int broken_append_streams = 0;
  int messages_before_break = 0;

  int unavailable_unary_calls = 0;         // the first so many unary calls are not taken
  int lost_unary_answers = 0;              // after those, so many are taken, but answered UNAVAILABLE
  int max_delay_milliseconds = 0;          // each Attend answer waits a random time, which reorders them too
  int duplicate_every = 0;                 // every so many-th Attend answer is sent twice
  bool never_answer = false;               // Attend takes requests and stays silent
  bool drop_last_result = false;           // an Attend answer lacks its last item's result
  std::string required_bearer_token = {};  // others get UNAUTHENTICATED
  // What AttendShared answers, with nobody who looks at that memory; without it, UNIMPLEMENTED.
  std::optional<attention::v1::AttendSharedResponse> shared_memory = {};
};

// Thread safe.
class FakeAttentionServer {
 public:
  // 2 layers, 4 query heads, 2 KV heads, head dimension 8, fp32; messages up to 64 KiB. Listens on 127.0.0.1.
  explicit FakeAttentionServer(const Faults& faults = {});
  ~FakeAttentionServer();
  FakeAttentionServer(const FakeAttentionServer&) = delete;
  FakeAttentionServer& operator=(const FakeAttentionServer&) = delete;

  std::string target() const;  // "127.0.0.1:port", the same after a restart

  // Cuts every connection; what is stored stays.
  void Stop();
  void Start();

  void set_faults(const Faults& faults);

  // Layer's tokens in order, each k's bytes followed by v's. Empty for an unknown sequence.
  std::vector<std::string> Tokens(const attention::v1::SequenceHandle& handle, uint32_t layer) const;
  int64_t num_sequences() const;
  int64_t repeated_tokens() const;  // appends that were found stored
  int64_t append_messages() const;  // AppendKv messages received
  int64_t attend_requests() const;  // Attend requests received
  int64_t largest_message() const;  // bytes of the largest AppendKv message

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace santa::client_testing

#endif  // SANTA_CLIENT_TESTING_FAKE_ATTENTION_SERVER_H_
