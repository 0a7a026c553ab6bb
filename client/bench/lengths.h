// How many tokens the load's sequences have.
#ifndef SANTA_CLIENT_BENCH_LENGTHS_H_
#define SANTA_CLIENT_BENCH_LENGTHS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace santa::bench {

// Immutable.
class Lengths {
 public:
  static constexpr int64_t kMost = int64_t{1} << 30;

  // "N": every sequence has N tokens, N in [0, kMost]. Otherwise, each length in [1, kMost]:
  //   "uniform:LEAST:MOST"
  //   "loguniform:LEAST:MOST"         its logarithm is uniform: as many short as long sequences
  //   "lognormal:MEDIAN:SIGMA:MOST"   its logarithm is normal with standard deviation SIGMA; cut off at MOST
  //   "file:PATH"                     whole numbers, blanks or lines between them, taken in turn
  // INVALID_ARGUMENT, NOT_FOUND: a sentence.
  static absl::StatusOr<Lengths> Parse(std::string_view text);
  static Lengths Fixed(int64_t tokens) { return {Kind::kFixed, tokens, tokens, 0, std::to_string(tokens)}; }

  // Of the sequence of this index over all clients. A pure function.
  int64_t Of(int64_t index, uint64_t seed) const;

  const std::string& text() const { return text_; }  // as it was parsed

 private:
  enum class Kind : uint8_t { kFixed, kUniform, kLogUniform, kLogNormal, kFile };
  Lengths(Kind kind, int64_t least, int64_t most, double sigma, std::string text)
      : kind_(kind), least_(least), most_(most), sigma_(sigma), text_(std::move(text)) {}

  static absl::StatusOr<Lengths> ParseFile(std::string_view path, std::string_view text);

  Kind kind_;
  int64_t least_;  // of a log-normal: the median
  int64_t most_;
  double sigma_;
  std::string text_;
  std::vector<int64_t> values_;  // of a file
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_LENGTHS_H_
