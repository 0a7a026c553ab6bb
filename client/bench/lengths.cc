#include "client/bench/lengths.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "absl/strings/numbers.h"
#include "client/concat.h"

namespace santa::bench {
namespace {

using client_internal::Concat;
using client_internal::ForAbseil;

constexpr std::string_view kForms =
    "N, uniform:LEAST:MOST, loguniform:LEAST:MOST, lognormal:MEDIAN:SIGMA:MOST or file:PATH";

absl::Status Refuse(std::string_view text) {
  return absl::InvalidArgumentError(Concat("--tokens is \"", text, "\"; allowed is ", kForms, ", lengths in [1, ",
                                           Lengths::kMost, "] (N may be 0) and 0 <= SIGMA <= 10"));
}

std::vector<std::string_view> Split(std::string_view text) {
  std::vector<std::string_view> parts;
  for (size_t colon = text.find(':'); colon != std::string_view::npos; colon = text.find(':')) {
    parts.push_back(text.substr(0, colon));
    text.remove_prefix(colon + 1);
  }
  parts.push_back(text);
  return parts;
}

bool ReadLength(std::string_view text, int64_t least, int64_t* length) {
  return absl::SimpleAtoi(ForAbseil(text), length) && *length >= least && *length <= Lengths::kMost;
}

}  // namespace

absl::StatusOr<Lengths> Lengths::Parse(std::string_view text) {
  constexpr std::string_view kFile = "file:";
  if (text.starts_with(kFile)) return ParseFile(text.substr(kFile.size()), text);
  const std::vector<std::string_view> parts = Split(text);
  int64_t least = 0;
  int64_t most = 0;
  double sigma = 0;
  if (parts.size() == 1 && ReadLength(parts[0], 0, &least)) return Fixed(least);
  const bool uniform = parts[0] == "uniform";
  if (uniform || parts[0] == "loguniform") {
    if (parts.size() == 3 && ReadLength(parts[1], 1, &least) && ReadLength(parts[2], least, &most)) {
      return Lengths(uniform ? Kind::kUniform : Kind::kLogUniform, least, most, 0, std::string(text));
    }
  } else if (parts[0] == "lognormal" && parts.size() == 4) {
    if (ReadLength(parts[1], 1, &least) && absl::SimpleAtod(ForAbseil(parts[2]), &sigma) && sigma >= 0 && sigma <= 10 &&
        ReadLength(parts[3], least, &most)) {
      return Lengths(Kind::kLogNormal, least, most, sigma, std::string(text));
    }
  }
  return Refuse(text);
}

absl::StatusOr<Lengths> Lengths::ParseFile(std::string_view path, std::string_view text) {
  std::ifstream file{std::string(path)};
  if (!file) return absl::NotFoundError(Concat("--tokens: cannot read ", path));
  Lengths lengths(Kind::kFile, 0, 0, 0, std::string(text));
  for (std::string word; file >> word;) {
    int64_t length = 0;
    if (!ReadLength(word, 1, &length)) {
      return absl::InvalidArgumentError(Concat("--tokens: number ", lengths.values_.size() + 1, " of ", path, " is \"",
                                               word, "\"; allowed is a whole number in [1, ", kMost, "]"));
    }
    lengths.values_.push_back(length);
  }
  if (lengths.values_.empty()) return absl::InvalidArgumentError(Concat("--tokens: ", path, " holds no number"));
  return lengths;
}

int64_t Lengths::Of(int64_t index, uint64_t seed) const {
  if (kind_ == Kind::kFixed) return least_;
  if (kind_ == Kind::kFile) return values_[index % values_.size()];
  std::seed_seq sequence = {static_cast<uint64_t>(seed), static_cast<uint64_t>(index)};
  std::mt19937_64 random(sequence);
  if (kind_ == Kind::kUniform) return std::uniform_int_distribution<int64_t>(least_, most_)(random);
  const double least = static_cast<double>(least_);
  const double most = static_cast<double>(most_);
  const double length = kind_ == Kind::kLogUniform
                            ? least * std::pow(most / least, std::uniform_real_distribution<double>()(random))
                            : least * std::exp(sigma_ * std::normal_distribution<double>()(random));
  return std::clamp<int64_t>(std::llround(std::min(length, most)), 1, most_);
}

}  // namespace santa::bench
