// What attention_bench prints.
#ifndef SANTA_CLIENT_BENCH_LOAD_REPORT_H_
#define SANTA_CLIENT_BENCH_LOAD_REPORT_H_

#include <string>

#include "client/bench/load_options.h"
#include "client/bench/load_run.h"

namespace santa::bench {

// Mean microseconds of a step by stage; they sum to the mean latency.
struct Stages {
  double late = 0;                 // from the intended start to the sending: the generator's own, open loop only
  double transport_and_reply = 0;  // client library, wire and the server's rpc layer, both ways
  double queue = 0;                // in the server, until its batch begins
  double device = 0;               // its batch computes
};
Stages MeanStages(const LoadCounts& counts);

// The median of a step's latency less its device time, over the median of the echo; 0 without one.
double OverEcho(const LoadResult& result);

// Seconds that the device computed over seconds measured, from /metrics where the result has them, else from the
// answers' statistics.
double DeviceBusyShare(const LoadResult& result);

std::string LoadTable(const LoadOptions& options, const LoadResult& result);  // for people
std::string LoadJson(const LoadOptions& options, const LoadResult& result);   // one object, a newline at its end

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LOAD_REPORT_H_
