// One layer of one sequence: what work must not overlap on.
#ifndef SANTA_SERVER_ENGINE_SEQUENCE_LAYER_H_
#define SANTA_SERVER_ENGINE_SEQUENCE_LAYER_H_

#include <cstdint>
#include <utility>

#include "server/kv/sequence_store.h"

namespace santa {

struct SequenceLayer {
  SequenceHandle sequence;
  int32_t layer = 0;

  friend bool operator==(const SequenceLayer&, const SequenceLayer&) = default;
  template <typename H>
  friend H AbslHashValue(H hash, const SequenceLayer& key) {
    return H::combine(std::move(hash), key.sequence.id, key.sequence.generation, key.layer);
  }
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_SEQUENCE_LAYER_H_
