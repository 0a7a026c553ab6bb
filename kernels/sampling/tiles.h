// The tiles of S2ANTA_FLASH and S2ANTA_PROP (arXiv 2605.01910): runs of T tokens at absolute multiples of T, so that a
// tile's tokens do not depend on pages, threads or the window; a window or the sequence's end cuts the outer ones
// short.
#ifndef SANTA_KERNELS_SAMPLING_TILES_H_
#define SANTA_KERNELS_SAMPLING_TILES_H_

#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

inline constexpr int64_t kMinTileSize = 256;  // tokens

// The tiles over the visible tokens [begin, end).
struct Tiling {
  int64_t begin;  // first visible token
  int64_t end;    // one past the last; end > begin >= 0
  int64_t size;   // T, tokens: 256 times a power of two
  int64_t first;  // absolute number of the first tile: begin / T. Also the index of its random offset (Purpose::kTile)
  int64_t count;  // N >= 1
};

// T = 256, doubled until there are no more tiles than draws: then every tile can have a budget of at least 1.
SANTA_HOST_DEVICE Tiling MakeTiling(int64_t begin, int64_t end, uint32_t draws) {
  int64_t size = kMinTileSize;
  while ((end - 1) / size - begin / size + 1 > static_cast<int64_t>(draws)) size *= 2;
  return {begin, end, size, begin / size, (end - 1) / size - begin / size + 1};
}

// Tokens [TileBegin, TileEnd) of tile t in [0, count), as positions in the sequence.
SANTA_HOST_DEVICE int64_t TileBegin(const Tiling& tiling, int64_t tile) {
  const int64_t begin = (tiling.first + tile) * tiling.size;
  return begin > tiling.begin ? begin : tiling.begin;
}
SANTA_HOST_DEVICE int64_t TileEnd(const Tiling& tiling, int64_t tile) {
  const int64_t end = (tiling.first + tile + 1) * tiling.size;
  return end < tiling.end ? end : tiling.end;
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_TILES_H_
