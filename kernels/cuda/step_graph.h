// A CUDA graph between two events.
#ifndef SANTA_KERNELS_CUDA_STEP_GRAPH_H_
#define SANTA_KERNELS_CUDA_STEP_GRAPH_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_memory.h"

namespace santa::cuda {

// Not thread safe.
class StepGraph {
 public:
  // queue(i) queues step i of [0, steps) on the stream, which captures it. Nothing runs yet.
  static absl::StatusOr<StepGraph> Capture(cudaStream_t stream, int steps,
                                           const std::function<absl::Status(int step)>& queue);

  // Runs every step; the mean device seconds of one. Waits for it.
  absl::StatusOr<double> Run();

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };

  cudaStream_t stream_ = nullptr;
  int steps_ = 0;
  std::unique_ptr<CUgraphExec_st, Destroy> graph_;
  Event start_;
  Event end_;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_STEP_GRAPH_H_
