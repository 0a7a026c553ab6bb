// What kernel_bench is asked to measure.
#ifndef SANTA_KERNELS_BENCH_OPTIONS_H_
#define SANTA_KERNELS_BENCH_OPTIONS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa::bench {

// Of the random numbers: kernels/bench/random_rows.h.
enum class Data : uint8_t { kNormal, kAttention };

struct Options {
  std::string backend = "cpu";
  int64_t batch = 1;       // sequences in a Decode call, [1, 4096]
  int64_t tokens = 32768;  // of each, [1, 2^24]; of a ragged batch the most
  // Tokens of each sequence of a ragged batch, whose size is then `batch`; empty: all have `tokens`.
  std::vector<int64_t> ragged;
  int64_t query_heads = 32;
  int64_t kv_heads = 8;
  int64_t head_dim = 128;
  int64_t page_size = 64;
  DType dtype = DType::kBFloat16;
  Sketch sketch = Sketch::kNone;
  KeyOrder key_order = KeyOrder::kTokenMajor;
  std::vector<Method> methods;  // by default all, SKETCHED where there is a sketch, BERNOULLI_QK with score draws
  int64_t samples = 2048;       // S of the sampled methods
  // In place of S, of COORDINATED and SKETCHED, the only methods beside EXACT then; 0: none.
  double target_relative_error = 0;
  int64_t score_draws = 0;  // R of all methods but EXACT, [0, kMaxScoreDraws]
  int64_t window = 0;       // tokens, 0: all
  Data data = Data::kNormal;
  double sigma = 2;  // standard deviation of the logits, (0, 100]
  // A file of q [sources, G, D], k and v [sources, tokens, D] in place of random numbers; empty: random ones.
  std::string input;
  int64_t standard_errors = 1;  // whether answers are to tell theirs, 0 or 1
  int64_t threads = 0;          // of the CPU, 0: all
  int64_t repetitions = 15;     // timed calls of each method, [1, 10000]
  int64_t seed = 1;
  bool pages_in_order = false;  // not shuffled
  bool json = false;
  bool help = false;

  // Tokens of each sequence, [batch].
  std::vector<int64_t> sequence_tokens() const;
  KvLayout layout() const;
  AttentionOptions attention(Method method, uint64_t draw_seed) const;
};

// Arguments without the program's name, each --flag=value, --json or --help. INVALID_ARGUMENT with a sentence that
// names flag and value.
absl::StatusOr<Options> ParseOptions(std::span<const std::string_view> arguments);

// What --help prints.
std::string Usage();

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_OPTIONS_H_
