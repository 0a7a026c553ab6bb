// The methods that draw for each query head, over kernels/sampling, in plain loops.
#ifndef SANTA_KERNELS_REFERENCE_ROW_WEIGHTS_H_
#define SANTA_KERNELS_REFERENCE_ROW_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/sampling/uniform.h"

namespace santa::reference {

// The rows that one query head takes, and with what weight each: o = sum_i weight_i v_i over the visible tokens.
class RowWeights {
 public:
  RowWeights(const AttentionOptions& options, const sampling::RandomStream& stream, int64_t first,
             std::vector<float> scores);

  double lse() const;
  const std::vector<double>& weights() const { return weights_; }

  // What the standard error needs of a row (kernels/sampling/standard_error.h): its fluctuation, 0 where it was not
  // drawn, what one draw of it weighs, and which run of rows it was drawn from.
  struct Chance {
    float fluctuation = 0;
    double weight = 0;
    int64_t run = 0;
  };
  const std::vector<Chance>& chances() const { return chances_; }

 private:
  void Choose();
  std::vector<uint64_t> Cumulative(int64_t begin, int64_t end) const;
  void DrawEach();
  void DrawSystematic(int64_t begin, int64_t end, uint32_t draws, uint64_t random, double weight);
  void DrawTiles();

  const AttentionOptions& options_;
  const sampling::RandomStream stream_;
  const int64_t first_;
  const std::vector<float> scores_;
  std::vector<double> weights_;
  std::vector<Chance> chances_;
  float largest_ = 0;
  double sum_ = 0;
};

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_ROW_WEIGHTS_H_
