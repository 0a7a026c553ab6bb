// Safetensors files: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the
// bytes. https://github.com/huggingface/safetensors
#ifndef SANTA_CLIENT_SAFETENSORS_H_
#define SANTA_CLIENT_SAFETENSORS_H_

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/tensor.h"

namespace santa {

// A parsed file. Immutable, so any number of threads may read one. Views stay valid while the object lives.
class Safetensors {
 public:
  // Maps the file into memory. NOT_FOUND or INTERNAL from the system; INVALID_ARGUMENT (naming file and tensor) when
  // the contents are malformed: header out of bounds or not JSON, a type this library does not know, offsets that
  // overlap, leave gaps or run past the end, sizes that do not match shapes. A file must not shrink while it is open.
  static absl::StatusOr<Safetensors> Open(const std::string& path);

  // The same over bytes in memory, which must outlive the result. `name` is for messages.
  static absl::StatusOr<Safetensors> Parse(std::string_view bytes, const std::string& name = "safetensors data");

  // NOT_FOUND lists the names that there are.
  absl::StatusOr<TensorView> Get(std::string_view name) const;
  bool Contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }

 private:
  std::string name_;
  std::shared_ptr<const void> mapping_;  // unmaps the file; null for Parse
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

// Writes atomically (a temporary file beside `path`, then a rename). INVALID_ARGUMENT for a tensor whose length does
// not match its shape.
absl::Status WriteSafetensors(const std::string& path, const std::map<std::string, TensorView, std::less<>>& tensors,
                              const std::map<std::string, std::string, std::less<>>& metadata = {});

}  // namespace santa

#endif  // SANTA_CLIENT_SAFETENSORS_H_
