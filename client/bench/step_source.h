// The decode steps that a client of the load generator sends.
#ifndef SANTA_CLIENT_BENCH_STEP_SOURCE_H_
#define SANTA_CLIENT_BENCH_STEP_SOURCE_H_

#include <cstdint>
#include <mutex>
#include <random>
#include <span>
#include <vector>

#include "client/bench/load_options.h"
#include "client/placed_step.h"
#include "client/tensor.h"
#include "proto/santa/attention/v1/attention.pb.h"

namespace santa::bench {

// Standard normal elements, around 0 or around means of every row of the outermost extent alike, normal with a
// deviation of `means`.
Tensor RandomTensor(const std::vector<int64_t>& shape, ElementType type, std::mt19937_64& random, float means = 0);

struct LoadStep {
  v1::AttendRequest request;
  uint32_t layer = 0;
  int64_t appended = 0;  // tokens of the layer before this step's
};

// Steps of one batch of sequences, which have their tokens in each layer: layer after layer, at the last stored
// position, or with options.append at the next one. The first item of each asks for statistics: they say what
// the whole step met. Thread safe.
class StepSource {
 public:
  // `tokens`: stored in each of the sequences.
  StepSource(const LoadOptions& options, const v1::KvLayout& layout, std::span<const v1::SequenceHandle> sequences,
             std::vector<int64_t> tokens, uint64_t seed);

  LoadStep Next();
  // The same without the tensors' data (AttendStream::Place), which Write then gives it.
  LoadStep NextForm();
  void Write(std::span<const TensorRooms> rooms) const;

  // The step's tokens may not be stored everywhere: with append, the layer goes on from there again. All tokens of a
  // sequence are the same bytes, so that repeating one that is stored is harmless.
  void Refused(uint32_t layer, int64_t appended);

 private:
  LoadStep Next(const v1::AttendRequest& request);

  const bool append_;
  const std::vector<int64_t> tokens_;
  v1::AttendRequest template_;
  v1::AttendRequest form_;  // it without data
  std::mutex mutex_;
  uint64_t steps_ = 0;
  std::vector<int64_t> appended_;  // by layer
};

}  // namespace santa::bench

#endif  // SANTA_CLIENT_BENCH_STEP_SOURCE_H_
