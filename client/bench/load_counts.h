// What a client of the load generator counts.
#ifndef SANTA_CLIENT_BENCH_LOAD_COUNTS_H_
#define SANTA_CLIENT_BENCH_LOAD_COUNTS_H_

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "client/bench/latency_histogram.h"

namespace santa::bench {

struct LoadCounts {
  // Of steps whose items were all answered OK, at any time; for progress.
  int64_t steps_ever = 0;

  // Of those answered OK within the measured time: throughput.
  int64_t steps = 0;
  int64_t items = 0;
  // Their batches' seconds on the device, shared out over the batches' items. Summed over all that load the server this
  // is the device's time, however steps of several clients met in a batch.
  double device_seconds_share = 0;

  // Of steps that began (open loop: should have begun) in the measured time and were answered OK, whenever that was.
  LatencyHistogram latency;         // from the (intended) start to the answer in the client's hands
  LatencyHistogram without_device;  // the same less the device's time on the step's batch
  double late_seconds = 0;          // sums over the same steps: from the intended start to the sending,
  double queue_seconds = 0;         // in the server's queue,
  double device_seconds = 0;        // and while the device computed the step's batch
  double batch_items = 0;           // of the step's batch

  // Of steps that began in the measured time and failed, whole or in an item.
  int64_t failed_steps = 0;
  std::map<absl::StatusCode, int64_t> failed_items;
  // Open loop: steps that should have begun in the measured time and that the client gave up to send.
  int64_t unsent_steps = 0;

  // Of uploads: tokens of prompts stored within the measured time, each counted once for all its layers; and how long
  // the uploads took that began in it.
  int64_t prompt_tokens = 0;
  LatencyHistogram prompts;
  int64_t failed_prompts = 0;

  // Of the stream, ever.
  int64_t streams_opened = 0;
  int64_t requests_resent = 0;
  int64_t shared_streams = 0;  // at the end: of memory shared with the server

  void Merge(const LoadCounts& other) {
    steps_ever += other.steps_ever;
    steps += other.steps;
    items += other.items;
    device_seconds_share += other.device_seconds_share;
    latency.Merge(other.latency);
    without_device.Merge(other.without_device);
    late_seconds += other.late_seconds;
    queue_seconds += other.queue_seconds;
    device_seconds += other.device_seconds;
    batch_items += other.batch_items;
    failed_steps += other.failed_steps;
    for (const auto& [code, count] : other.failed_items) failed_items[code] += count;
    unsent_steps += other.unsent_steps;
    prompt_tokens += other.prompt_tokens;
    prompts.Merge(other.prompts);
    failed_prompts += other.failed_prompts;
    streams_opened += other.streams_opened;
    requests_resent += other.requests_resent;
    shared_streams += other.shared_streams;
  }
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_COUNTS_H_
