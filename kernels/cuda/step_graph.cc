#include "kernels/cuda/step_graph.h"

#include <utility>

namespace santa::cuda {

absl::StatusOr<StepGraph> StepGraph::Capture(cudaStream_t stream, int steps,
                                             const std::function<absl::Status(int step)>& queue) {
  StepGraph made;
  made.stream_ = stream;
  made.steps_ = steps;
  for (Event* event : {&made.start_, &made.end_}) {
    cudaEvent_t timed = nullptr;
    if (absl::Status status = ToStatus(cudaEventCreate(&timed), "cudaEventCreate"); !status.ok()) return status;
    event->reset(timed);
  }
  absl::Status status =
      ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  if (!status.ok()) return status;
  for (int step = 0; step < steps && status.ok(); ++step) status = queue(step);
  // Ended whatever happened, so that the stream can be used again.
  cudaGraph_t graph = nullptr;
  const absl::Status ended = ToStatus(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  if (status.ok()) status = ended;
  cudaGraphExec_t executable = nullptr;
  if (status.ok()) status = ToStatus(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!status.ok()) return status;
  made.graph_.reset(executable);
  return made;
}

absl::StatusOr<double> StepGraph::Run() {
  absl::Status status = ToStatus(cudaEventRecord(start_.get(), stream_), "cudaEventRecord");
  if (status.ok()) status = ToStatus(cudaGraphLaunch(graph_.get(), stream_), "cudaGraphLaunch");
  if (status.ok()) status = ToStatus(cudaEventRecord(end_.get(), stream_), "cudaEventRecord");
  if (status.ok()) status = ToStatus(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
  float milliseconds = 0;
  if (status.ok()) {
    status = ToStatus(cudaEventElapsedTime(&milliseconds, start_.get(), end_.get()), "cudaEventElapsedTime");
  }
  if (!status.ok()) return status;
  return milliseconds / 1e3 / steps_;
}

}  // namespace santa::cuda
