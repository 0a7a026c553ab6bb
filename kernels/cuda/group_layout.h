// How an item's scratch (kernels/cuda/group_draw.h) is laid out. Pure functions of the item, on the host and on the
// device.
#ifndef SANTA_KERNELS_CUDA_GROUP_LAYOUT_H_
#define SANTA_KERNELS_CUDA_GROUP_LAYOUT_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/inclusion.h"
#include "kernels/types.h"

namespace santa::cuda {

// Bytes of a score's code: COORDINATED takes its weights from it, SKETCHED only probabilities, and with a value sketch
// the weights of what that says: as good as these are.
SANTA_HOST_DEVICE int CodeBytes(Method method, Sketch sketch) {
  return method == Method::kCoordinated || sketch == Sketch::kK8V8 ? 2 : 1;
}

SANTA_HOST_DEVICE bool SketchesValues(Sketch sketch) { return sketch == Sketch::kK4V4 || sketch == Sketch::kK8V8; }

// Whether what rows add is what they correct of the sketches of the values.
SANTA_HOST_DEVICE bool Corrects(Method method, Sketch sketch) {
  return method == Method::kSketched && SketchesValues(sketch);
}

inline constexpr int kMaxBlockTokens = 4096;  // of the splits that one block takes
inline constexpr int kMaxBlockSplits = 4;
// Of a split that shares a run with another: tokens, and rows to be read of it, on average.
inline constexpr int kLongestPaired = 1024, kMostRowsPaired = 64;

// Codes of a token: of its group's heads in fours, so that a thread reads four at a time.
inline constexpr int kQuad = 4;
SANTA_HOST_DEVICE int CodesOfToken(int32_t group_size) { return (group_size + kQuad - 1) / kQuad * kQuad; }

// What a run of splits adds to each head's answer: vectors of D, in this order, then numbers. w = exp(s) / pi; t = 1 -
// pi, for the standard error (kernels/sampling/standard_error.h). The vectors of the error lie side by side, as bf16:
// that is a third less to write and to read, and rounds a sum by 2^-9 of itself at most.
//     sum w v,  (sum t w v, sum t w^2 v)                       over the rows read
//     sum w, t, t^2, t w, t w^2, t w^2 |v|^2, log2 of the two references
// Weights are taken against a reference of the head, so that 16 bits hold them and none overflows: those of the answer
// against the largest of all, those with t against the largest of a row that was left to chance. COORDINATED has p for
// exp(s), and knows beforehand that no weight is above 1, or 1 / kappa: these are its references.
//
// With a value sketch a split adds what the sketches say of its tokens, sum e~ v~ and sum e~, with e~ what a token's
// code (SketchWeight of kernels/cuda/group_inclusion.cuh) stands for; and what its rows correct: w v - w~ v~ in place
// of w v and w - w~ in place of w, w~ = e~ / pi. The references are of w and w~ both.
inline constexpr int kPartialVectors = 3;
inline constexpr int kPartialWords = 2;  // that they take of each dimension
enum Reference { kOfAll, kOfChance, kReferences };
enum PartialNumber { kSumW, kSumT, kSumTT, kSumTW, kSumTW2, kSumTW2V2, kPartialSums };
inline constexpr int kPartialNumbers = int{kPartialSums} + int{kReferences};

// What a split adds in one pass: sum w v, [G][D], and a PassSplit: what tells the error of its rows
// (kernels/cuda/row_signs.cuh), sum s w v of two heads side by side as bf16, [(G + 1) / 2][D], with s = +-sqrt(t) of a
// row that was left to chance, and numbers [kPassNumbers][G]: sum w, sum s w, a rounding, how many rows were left to
// chance, and the references as above. With a value sketch sum w v and sum w have the sums over the sketch in them, b =
// w - w~ is in place of w where s is, and the rounding is sum t w~^2 |v - v~|^2. Of four splits one after the other,
// from the item's first on, sum w v may be one (kernels/cuda/four_sums.cuh).
enum PassNumber { kPassW, kPassSigned, kPassRounding, kPassRows, kPassOfAll, kPassOfChance, kPassNumbers };
inline constexpr int kSplitsOfFour = 4;
struct PassSplit {
  SANTA_HOST_DEVICE static constexpr int Words(int group_size, int head_dim) { return (group_size + 1) / 2 * head_dim; }
  SANTA_HOST_DEVICE static constexpr int Floats(int group_size, int head_dim) {  // a multiple of 16 bytes
    return (Words(group_size, head_dim) + kPassNumbers * group_size + 3) / 4 * 4;
  }
};

// What a pilot draw says of the draw that follows it (kernels/sampling/target_error.h).
struct PilotAnswer {
  float allowed[16];  // of each head, by which factor its squared error may grow
  bool done;          // the pilot itself reaches the target
};

// All arrays begin on 256 bytes. The host works out where; kernels read it.
class GroupArrays {
 public:
  GroupArrays() = default;
  // Of an item over the visible tokens [begin, end), cut into so many splits of split_tokens at most. bytes() grows
  // with end - begin, and is largest for split_tokens of kMaxBlockTokens. one_pass: of one whose threshold is a
  // pilot's, which leaves no scores (kernels/cuda/one_pass.cu).
  SANTA_HOST_DEVICE GroupArrays(uint8_t* scratch, Method method, Sketch sketch, bool has_target, bool one_pass,
                                int32_t num_kv_heads, int32_t group_size, int32_t head_dim, int32_t begin, int32_t end,
                                int32_t num_splits, int32_t split_tokens, uint32_t sample_count)
      : first_block_(begin / sampling::kCodeBlock),
        num_blocks_((end - 1) / sampling::kCodeBlock - begin / sampling::kCodeBlock + 1),
        num_splits_(num_splits),
        splits_of_run_(Corrects(method, sketch) && !one_pass && split_tokens <= kLongestPaired &&
                               sample_count <= static_cast<uint32_t>(num_splits) * kMostRowsPaired
                           ? 2
                           : 1),
        num_runs_((num_splits + splits_of_run_ - 1) / splits_of_run_),
        group_size_(group_size),
        head_dim_(head_dim),
        block_code_bytes_(sampling::kCodeBlock * CodesOfToken(group_size) * CodeBytes(method, sketch)) {
    uint8_t* at = scratch;
    const auto take = [&at](int64_t bytes) {
      uint8_t* array = at;
      at += (bytes + 255) / 256 * 256;
      return array;
    };
    const int64_t blocks = static_cast<int64_t>(num_kv_heads) * num_blocks_;
    const int64_t splits = static_cast<int64_t>(num_kv_heads) * num_splits_;
    if (!one_pass || method == Method::kCoordinated) {
      split_sums_ = reinterpret_cast<float2*>(take(splits * group_size * 8));
    }
    if (!one_pass) {
      codes_ = take(blocks * block_code_bytes_);
      block_max_ = reinterpret_cast<float*>(take(blocks * group_size * 4));
      totals_ = reinterpret_cast<unsigned long long*>(take(splits * 8));
      histogram_ = reinterpret_cast<unsigned*>(take(int64_t{num_kv_heads} * sampling::kInclusionBins * 4));
    }
    lse_ = reinterpret_cast<float*>(take(int64_t{num_kv_heads} * group_size * 4));
    thresholds_ = reinterpret_cast<sampling::InclusionThreshold*>(
        take(num_kv_heads * static_cast<int64_t>(sizeof(sampling::InclusionThreshold))));
    if (one_pass) {
      partials_ = reinterpret_cast<float*>(take(splits * group_size * head_dim * 4));
      pass_splits_ = reinterpret_cast<float*>(take(splits * PassSplit::Floats(group_size, head_dim) * 4));
    } else {
      partials_ = reinterpret_cast<float*>(take(int64_t{num_kv_heads} * num_runs_ * partial_size() * 4));
    }
    if (Corrects(method, sketch)) {
      if (!one_pass) sketch_sums_ = reinterpret_cast<float*>(take(splits * group_size * head_dim * 4));
      sketch_masses_ = reinterpret_cast<float2*>(take(splits * group_size * 8));
      alone_ = reinterpret_cast<unsigned*>(take(int64_t{num_kv_heads} * 4));
    }
    if (has_target) {
      pilots_ = reinterpret_cast<PilotAnswer*>(take(num_kv_heads * static_cast<int64_t>(sizeof(PilotAnswer))));
      spreads_ = reinterpret_cast<unsigned long long*>(
          take(int64_t{num_kv_heads} * group_size * sampling::kInclusionBins * 8));
    }
    bytes_ = at - scratch;
  }

  SANTA_HOST_DEVICE int64_t bytes() const { return bytes_; }
  SANTA_HOST_DEVICE int32_t num_splits() const { return num_splits_; }
  // Splits one after the other, from the item's first on, whose rows are summed up together: one; with a value sketch
  // two where few rows are read of one.
  SANTA_HOST_DEVICE int32_t splits_of_run() const { return splits_of_run_; }
  SANTA_HOST_DEVICE int32_t num_runs() const { return num_runs_; }
  SANTA_HOST_DEVICE int32_t num_fours() const { return (num_splits_ + kSplitsOfFour - 1) / kSplitsOfFour; }
  // Blocks of kCodeBlock tokens are named by their absolute number.
  // [kCodeBlock][CodesOfToken]
  SANTA_HOST_DEVICE uint8_t* codes(int32_t kv_head, int32_t block) const {
    return codes_ + BlockAt(kv_head, block) * block_code_bytes_;
  }
  // [G]: the largest score of the block's visible tokens, in log2 units.
  SANTA_HOST_DEVICE float* block_max(int32_t kv_head, int32_t block) const {
    return block_max_ + BlockAt(kv_head, block) * group_size_;
  }
  // [splits][G]: the largest score of a split, and the sum of 2^(score - largest).
  SANTA_HOST_DEVICE float2* split_sums(int32_t kv_head) const {
    return split_sums_ + static_cast<int64_t>(kv_head) * num_splits_ * group_size_;
  }
  // [splits]: the sum of a split's inclusions, once bit 63 is set.
  SANTA_HOST_DEVICE unsigned long long* totals(int32_t kv_head) const {
    return totals_ + static_cast<int64_t>(kv_head) * num_splits_;
  }
  // [kInclusionBins]
  SANTA_HOST_DEVICE unsigned* histogram(int32_t kv_head) const {
    return histogram_ + kv_head * sampling::kInclusionBins;
  }
  // [G]: log2 of the sum of 2^score over the visible tokens.
  SANTA_HOST_DEVICE float* lse(int32_t kv_head) const { return lse_ + kv_head * group_size_; }
  SANTA_HOST_DEVICE sampling::InclusionThreshold* threshold(int32_t kv_head) const { return thresholds_ + kv_head; }
  // [kPartialWords][G][D], [kPartialNumbers][G]
  SANTA_HOST_DEVICE float* partial(int32_t kv_head, int32_t run) const {
    return partials_ + (static_cast<int64_t>(kv_head) * num_runs_ + run) * partial_size();
  }
  SANTA_HOST_DEVICE int partial_numbers() const { return kPartialWords * group_size_ * head_dim_; }
  // In one pass: sum w v of a split, or of four.
  SANTA_HOST_DEVICE float* pass_output(int32_t kv_head, int32_t split_or_four) const {
    return partials_ + (static_cast<int64_t>(kv_head) * num_splits_ + split_or_four) * group_size_ * head_dim_;
  }
  SANTA_HOST_DEVICE uint32_t* pass_signed(int32_t kv_head, int32_t split) const {
    return reinterpret_cast<uint32_t*>(pass_splits_ + (static_cast<int64_t>(kv_head) * num_splits_ + split) *
                                                          PassSplit::Floats(group_size_, head_dim_));
  }
  SANTA_HOST_DEVICE float* pass_numbers(int32_t kv_head, int32_t split) const {
    return reinterpret_cast<float*>(pass_signed(kv_head, split)) + PassSplit::Words(group_size_, head_dim_);
  }
  // With a value sketch alone. [splits][G][D]: sums of e~ v~ of a split, and [splits][G] what their e~ is measured in,
  // in log2 units, and its sum.
  SANTA_HOST_DEVICE float* sketch_sums(int32_t kv_head, int32_t split) const {
    return sketch_sums_ + (static_cast<int64_t>(kv_head) * num_splits_ + split) * group_size_ * head_dim_;
  }
  SANTA_HOST_DEVICE float2* sketch_masses(int32_t kv_head) const {
    return sketch_masses_ + static_cast<int64_t>(kv_head) * num_splits_ * group_size_;
  }
  // Bits of the heads whose rows stand alone (sampling::kLeastCorrectedMass).
  SANTA_HOST_DEVICE unsigned* alone(int32_t kv_head) const { return alone_ + kv_head; }
  // Of an item with a target alone.
  SANTA_HOST_DEVICE PilotAnswer* pilot(int32_t kv_head) const { return pilots_ + kv_head; }
  // [G][kInclusionBins]: sums of p^2 by the bins of a, in the units of aim_at_target.cu.
  SANTA_HOST_DEVICE unsigned long long* spreads(int32_t kv_head) const {
    return spreads_ + static_cast<int64_t>(kv_head) * group_size_ * sampling::kInclusionBins;
  }

 private:
  // A multiple of 16 bytes, as the dimension of a head is.
  SANTA_HOST_DEVICE int64_t partial_size() const {
    return (int64_t{kPartialWords} * head_dim_ * group_size_ + kPartialNumbers * group_size_ + 3) / 4 * 4;
  }
  SANTA_HOST_DEVICE int64_t BlockAt(int32_t kv_head, int32_t block) const {
    return static_cast<int64_t>(kv_head) * num_blocks_ + (block - first_block_);
  }

  int32_t first_block_ = 0, num_blocks_ = 0, num_splits_ = 0, splits_of_run_ = 1, num_runs_ = 0;
  int32_t group_size_ = 0, head_dim_ = 0;
  int32_t block_code_bytes_ = 0;
  uint8_t* codes_ = nullptr;
  float* block_max_ = nullptr;
  float2* split_sums_ = nullptr;
  unsigned long long* totals_ = nullptr;
  unsigned* histogram_ = nullptr;
  float* lse_ = nullptr;
  sampling::InclusionThreshold* thresholds_ = nullptr;
  float* partials_ = nullptr;
  float* pass_splits_ = nullptr;
  float* sketch_sums_ = nullptr;
  float2* sketch_masses_ = nullptr;
  unsigned* alone_ = nullptr;
  PilotAnswer* pilots_ = nullptr;
  unsigned long long* spreads_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_LAYOUT_H_
