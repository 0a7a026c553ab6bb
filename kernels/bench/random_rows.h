// Random keys, values and queries: of independent normals (--data=normal), or with what attention is known for
// (--data=attention).
//
// normal: all standard normal, queries times sigma, so that logits have that standard deviation. The mean output is
// small then, and errors are large beside it.
//
// attention: of each key/value head,
//     keys     normal, with 4 channels, anywhere, 8 times as large as the others
//     queries  of the group's heads correlate by a half, and are scaled so that the logits of such keys have standard
//              deviation sigma
//     sink     the first token has logit 4 sigma + 1 for every head of the group: the shortest key (in units of the
//              channels' deviations) that has
//     window   the last 64 tokens' logits are 1 higher
//     values   normal around a mean of the head, itself normal with standard deviation 1/2
#ifndef SANTA_KERNELS_BENCH_RANDOM_ROWS_H_
#define SANTA_KERNELS_BENCH_RANDOM_ROWS_H_

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kernels/bench/options.h"

namespace santa::bench {

// Immutable once made.
class RandomRows {
 public:
  // Also draws the queries, [batch][H][D], rounded to the cache's type (fp8: to fp16), as a model of that type has
  // them.
  RandomRows(const Options& options, std::span<float> queries);

  // The row of one token and head of a sequence to `row`, [D]. Sequence s is one of item s % batch, whose sequences
  // have `tokens` each.
  void Copy(int64_t sequence, int64_t tokens, int64_t token, int64_t kv_head, bool value, float* row) const;

 private:
  // What --data=attention has for each key/value head of each item.
  struct Head {
    std::vector<float> deviation;  // of the keys' channels, [D]
    std::vector<float> raise;      // the key whose logit is 1 for every head of the group, [D]
    std::vector<float> mean;       // of the values, [D]
  };
  Head MakeHead(std::mt19937_64& random, std::span<float> queries) const;

  Options options_;
  std::vector<float> numbers_;  // normal; a row is a piece of them, wherever its address hashes to
  std::vector<Head> heads_;     // [item][kv_head]; empty for --data=normal
};

}  // namespace santa::bench

#endif  // SANTA_KERNELS_BENCH_RANDOM_ROWS_H_
