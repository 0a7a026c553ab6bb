// The threshold of a group's draw (kernels/sampling/inclusion.h) from a pilot: slices of 16 tokens that stand for all
// visible ones, so that scores are needed once and nothing waits for those of the whole sequence.
//
// Any pi > 0 is unbiased: the pilot decides how many rows are read, never what is expected of them. A slice counts as
// often as it stands for others, in the heads' log-sum-exps, in the histogram of a_i and in the number of rows, and
// kappa is solved for as ever; a_i of every token is taken against the pilot's log-sum-exps, from scores that are not
// rounded to codes. So the sample count becomes what sum_i pi_i is about, no longer its bound.
//
// A slice to which attention goes, say a phrase that the query looks up, would in the pilot stand for many that there
// are not, and nearly all rows would be spent on those: so no slice counts for more than kMostOfPilot of a head's sum.
//
// No row waits for those before it either: every run of tokens has a systematic draw of its own.
#ifndef SANTA_KERNELS_SAMPLING_PILOT_H_
#define SANTA_KERNELS_SAMPLING_PILOT_H_

#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/inclusion.h"
#include "kernels/sampling/uniform.h"

namespace santa::sampling {

inline constexpr int kSliceTokens = 16;  // slices begin at absolute multiples of it
inline constexpr int kPilotSlices = 128;
// The last slices stand for themselves alone, as does the first one: attention likes both ends of a sequence, and the
// tokens of the last page, which may not be full and then has no sketch, lie in these.
inline constexpr int kPilotTail = 256 / kSliceTokens;

// Visible tokens up to which a pilot would be nearly everything.
inline constexpr int64_t kMostWithoutPilot = int64_t{kPilotSlices} * kSliceTokens;
// Below so many samples the chance that no run reads a row, up to exp(-S), is more than a rounding error.
inline constexpr uint32_t kLeastPilotSamples = 32;

struct PilotSlice {
  int32_t slice;       // absolute: its first token / kSliceTokens
  int32_t stands_for;  // slices, itself included
};

// The i-th of kPilotSlices of the slices [first, first + count), count > kPilotSlices: one of each of as many stretches
// of equal length, chosen as if at random but by their place alone, so that pi is a function of the data.
SANTA_HOST_DEVICE PilotSlice MakePilotSlice(int32_t first, int32_t count, int i) {
  constexpr int kStretches = kPilotSlices - kPilotTail - 1;
  if (i == 0) return {first, 1};
  if (i > kStretches) return {first + count - (kPilotSlices - i), 1};
  const int64_t middle = count - 1 - kPilotTail;
  const auto begin = static_cast<int32_t>((i - 1) * middle / kStretches);
  const auto end = static_cast<int32_t>(i * middle / kStretches);
  const int32_t at = first + 1 + begin, length = end - begin;
  return {at + static_cast<int32_t>(UniformBelow(SplitMix64(static_cast<uint64_t>(at)), length)), length};
}

inline constexpr float kMostOfPilot = 1.0f / 4;

// How often a slice counts in the end. share: the largest over the heads of its sum of exp(s), once, to that of the
// whole pilot.
SANTA_HOST_DEVICE int32_t PilotTimes(int32_t stands_for, float share) {
  const float most = kMostOfPilot / share;
  if (!(most < static_cast<float>(stands_for))) return stands_for;
  return most < 1 ? 1 : static_cast<int32_t>(most);
}

// Tokens of a run: runs begin at absolute multiples of it. visible > kMostWithoutPilot.
SANTA_HOST_DEVICE int32_t PilotRunTokens(int64_t visible) {
  return visible <= 32768 ? 1024 : visible <= 65536 ? 2048 : 4096;
}

// Where the draw of a run begins, [0, kCertain). stream: as InclusionOffset's; run: its first token / PilotRunTokens.
SANTA_HOST_DEVICE uint32_t RunOffset(const RandomStream& stream, uint32_t run) {
  return static_cast<uint32_t>(Random64(stream, Purpose::kInclusionRun, run) >> (64 - kInclusionBits));
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_PILOT_H_
