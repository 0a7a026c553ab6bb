// COORDINATED and SKETCHED by their definitions (kernels/sampling/inclusion.h, pilot.h, sketch.h), in fp64: one draw
// for the query heads of a key/value head.
#ifndef SANTA_KERNELS_REFERENCE_GROUP_DRAW_H_
#define SANTA_KERNELS_REFERENCE_GROUP_DRAW_H_

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/reference/estimators.h"
#include "kernels/reference/head.h"

namespace santa::reference {

// Whether a GroupDraw makes the estimate: the method is one of the two and S is below the visible tokens.
bool DrawsForGroups(const Step& step);

class GroupDraw {
 public:
  GroupDraw(const Step& step, int32_t kv_head);

  // The group's part of an estimate.
  void Estimate(std::mt19937_64& random, Output& output) const;

  void AddMoments(Moments& moments) const;

 private:
  // What a head's sums are made of: constant + sum over the rows read of row / pi.
  struct Sum {
    Vector constant;
    Rows rows;
  };

  // exp(s~ - lse) by the keys as the sketch has them, of each head: [head][row].
  Rows SketchedMasses(const Step& step, int32_t kv_head) const;
  void SketchValues(const Step& step, int32_t kv_head);
  void ChooseRuns(const Step& step);
  void ChooseProbabilities(uint32_t samples);
  // How many rows each row stands for; masses: the sum of counted_p_ over these, of each head.
  std::vector<int64_t> Counts(Vector& masses) const;

  // The sums that make a head's answer, its visible tokens' mass as 1: of e v, and of e.
  Sum Numerator(size_t in_group) const;
  Sum Mass(size_t in_group) const;
  // What the ratio errs by, linearised: numerator - o mass.
  Sum Residual(size_t in_group) const;
  // What rows [from, to), a run, add to the estimate with their draw's offset in [0, 1); the variance of that.
  Vector RunTotal(const Sum& sum, double offset, size_t from, size_t to) const;
  Vector RunVariance(const Sum& sum, size_t from, size_t to) const;
  Vector Total(const Sum& sum, const Vector& offsets) const;
  Vector Variance(const Sum& sum) const;

  Method method_;
  bool has_pilot_ = false;
  bool corrects_values_ = false;  // the difference estimator
  std::vector<Head> heads_;       // of the group
  // [head][row], exp(s~ - lse) of the scores that choose; and of those that are counted, which for COORDINATED by a
  // pilot are a sketch's, if there is one.
  Rows scored_p_, counted_p_;
  Rows sketched_v_;               // [row][D]
  std::vector<bool> candidate_;   // [row]
  Vector pi_;                     // [row]
  std::vector<size_t> run_ends_;  // of rows that have a draw in common
};

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_GROUP_DRAW_H_
